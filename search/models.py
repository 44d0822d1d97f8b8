"""Which model an index was made with, and that model again."""

import hashlib
import json
from pathlib import Path

import torch

from common.errors import UserError
from modules.program.build import find_checkpoint
from modules.program.loading import Run, load_run
from modules.runtime.identity import clip_fingerprint
from modules.runtime.run_folder import load_checkpoint
from search.settings import ModelSettings

DEFAULT_METHOD = "zero_shot"
SAME = "take another --index_dir, or delete this one and index again"
RECORDED = ("run", "method", "pretrained_clip_name", "pretrained_dir", "max_frames", "max_words")


def wanted_settings(model: ModelSettings) -> dict[str, str]:
    """What a new index notes of the flags about its model: names and texts, "" for what is not given."""
    if model.run is not None and model.method is not None:
        raise UserError("give --run or --method, one of the two")
    values = {name: getattr(model, name) for name in RECORDED}
    if model.run is None and model.method is None:
        values["method"] = DEFAULT_METHOD
    if model.run is not None:
        values["run"] = model.run.resolve()
    return {name: "" if value is None else str(value) for name, value in values.items()}


def check_same(folder: Path, recorded: dict[str, str], model: ModelSettings) -> None:
    """Refuse flags about the model that an index was not made with.

    Raises:
        UserError: naming them.
    """
    wanted = wanted_settings(model)
    given = [name for name in RECORDED if getattr(model, name) is not None]
    if model.run is not None and recorded["method"]:
        given.append("method")
    # a CLIP may have moved; its weights are compared when it is loaded
    moved = {"pretrained_clip_name", "pretrained_dir", "run"}
    differ = [name for name in given if name not in moved and wanted[name] != recorded[name]]
    if differ:
        found = ", ".join(f"--{name} {recorded[name] or 'not given'}" for name in differ)
        raise UserError(f"the index {folder} was made with {found}: {SAME}")


def open_run(recorded: dict[str, str], model: ModelSettings) -> Run:
    """The model that an index was or is to be made with.

    Args:
        recorded: settings of the index.
        model: flags; those that name files go before what is recorded.

    Raises:
        UserError: if it cannot be loaded.
    """

    def value(name: str) -> str | None:
        given = getattr(model, name)
        return recorded[name] or None if given is None else str(given)

    numbers = {name: int(value(name)) if value(name) else None for name in ("max_frames", "max_words")}
    source = value("run") if recorded["run"] else None
    return load_run(
        source,
        method=None if source else recorded["method"],
        clip=value("pretrained_clip_name"),
        pretrained_dir=value("pretrained_dir"),
        trust_weights=model.trust_weights,
        precision=model.precision,
        **numbers,
    )


def fingerprint(recorded: dict[str, str], model: ModelSettings, run: Run | None) -> str:
    """By which a model is known: what trained and its run's identity, which names its CLIP's weights, or these.

    A checkpoint's other content, such as the seconds that its training took, is no part of the model. `run` is needed
    where the index was made with no training.
    """
    if not recorded["run"]:
        return clip_fingerprint(run.clip)
    checkpoint = load_checkpoint(find_checkpoint(Path(model.run or recorded["run"])))
    digest = hashlib.sha256(json.dumps(checkpoint["identity"], sort_keys=True).encode())
    for name, value in sorted(checkpoint["model"].items()):
        digest.update(name.encode() + value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_fingerprint(folder: Path, recorded: dict[str, str], model: ModelSettings, run: Run | None) -> None:
    """Refuse a model that is not the one that an index was made with.

    Raises:
        UserError: saying so.
    """
    if fingerprint(recorded, model, run) != recorded["fingerprint"]:
        what = f"run {model.run or recorded['run']}" if recorded["run"] else "CLIP"
        raise UserError(f"the {what} is no longer the one that the index {folder} was made with: {SAME}")
