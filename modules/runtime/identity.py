"""Digests of what a run depends on, and the differences between two runs."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from dataloaders.samples import Sample
from dataloaders.video.pack_index import PackIndex
from modules.clip.loader import LoadedCLIP


def list_differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    names: Collection[str] | None = None,
    former: Mapping[str, Any] | None = None,
) -> list[str]:
    """Lines that say what changed between the settings of a checkpoint and those of this run.

    Args:
        before, now: an ``identity`` each, and the ``clip_name`` that tells people which CLIP its digest is of.
        names: of the settings to compare; None for all.
        former: what a checkpoint that lacks a setting was made with, by name.
    """
    former = {name: value for name, value in (former or {}).items() if name in now["identity"]}
    before = {**before, "identity": former | before["identity"]}
    old, new = before["identity"], now["identity"]
    compared = old.keys() | new.keys() if names is None else names

    def shown(run: Mapping[str, Any], name: str) -> str:
        value = run["identity"].get(name)
        return f"{run['clip_name']} ({value})" if name == "clip" and "clip_name" in run else str(value)

    return [
        f"{name}: was {shown(before, name)}, is {shown(now, name)}"
        for name in sorted(compared)
        if old.get(name) != new.get(name)
    ]


def clip_fingerprint(clip: LoadedCLIP) -> str:
    """A digest of a CLIP's weights and of what its weights do not show: layers, heads, activations, normalisation."""
    heads = [module.num_heads for module in clip.model.modules() if hasattr(module, "num_heads")]
    structure = repr((str(clip.model), heads, clip.model.context_length, clip.mean, clip.std))
    return f"{tensors_fingerprint(clip.model.state_dict())}-{hashlib.sha256(structure.encode()).hexdigest()[:8]}"


def tensors_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def pack_fingerprint(pack: PackIndex | None, lists: Sequence[Sequence[Sample]]) -> str | None:
    """A digest of the packed frames that some lists of samples read; None for video files, which may be moved.

    A pack holds other pixels than the videos it was made from, if it holds JPEG, and a run goes on with what it began.
    """
    if pack is None:
        return None
    return pack.fingerprint(dict.fromkeys(sample.path for samples in lists for sample in samples))


def samples_fingerprint(samples: Sequence[Sample]) -> str:
    """The number of samples and a digest of their ids, captions and sets, in order; files may move."""
    digest = hashlib.sha256()
    for sample in samples:
        fields = (sample.sample_id, sample.video_id, sample.captions, sample.label)
        if sample.test_set is not None:  # else the digests of lists without sets, in older checkpoints, would change
            fields += (sample.test_set,)
        digest.update(repr(fields).encode())
    return f"{len(samples)} samples, {digest.hexdigest()[:16]}"
