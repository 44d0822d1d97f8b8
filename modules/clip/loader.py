"""Loading CLIP through open_clip, and refusing weight files that are not what they should be.

The model, its tokenizer, vocabulary, configurations and downloads are open_clip's. What is added here: OpenAI's own
names and file names, OpenAI's TorchScript archives (half precision, which open_clip's ``create_model`` refuses as a
path), checks of checksum and shapes before anything is run, and QuickGELU wherever OpenAI's weights are meant.
"""

import contextlib
import hashlib
import json
import logging
import math
import socket
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from common.errors import UserError
from modules.clip.text import ClipTextTower, WholeTextTower
from modules.clip.vision import ClipVisionTower, UnsupportedCLIP

# OpenAI's names, as its release spells them, and open_clip's names of the same models
OPENAI_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
ARCHIVE_BUFFERS = ("input_resolution", "context_length", "vocab_size")
FOLDER_WEIGHTS = "open_clip_model.safetensors"
FOLDER_CONFIG = "open_clip_config.json"
DEFAULT_CONTEXT = open_clip.CLIPTextCfg().context_length  # of a configuration that does not say


class WeightsError(UserError):
    """A weight source that cannot be used; the message says what was expected and what was found."""


@dataclass(frozen=True)
class LoadedCLIP:
    """A frozen CLIP in fp32 and what belongs to it.

    Attributes:
        model: open_clip's model.
        tokenizer: its tokenizer: strings, context_length → (N, context_length) int64.
        mean, std: normalisation of the colour channels.
    """

    model: nn.Module
    tokenizer: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def logit_scale(self) -> float:
        """The factor of similarities, exp of CLIP's own parameter."""
        return math.exp(self.model.logit_scale.item())

    @property
    def image_size(self) -> int:
        """Side of the image tower's input, in pixels."""
        size = self.model.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def output_width(self) -> int:
        """E, of an embedding."""
        return self.model.visual.proj.shape[1]

    def text_tower(self) -> ClipTextTower:
        """The text tower, in parts.

        Raises:
            UnsupportedCLIP: if it is not like OpenAI's.
        """
        return ClipTextTower(self.model)

    def frozen_text_tower(self) -> ClipTextTower | WholeTextTower:
        """The text tower where nothing is to stand in it: as a whole if it is of another structure than OpenAI's."""
        try:
            return ClipTextTower(self.model)
        except UnsupportedCLIP:
            if not hasattr(self.model, "text"):
                raise
            return WholeTextTower(self.model)

    def vision_tower(self) -> ClipVisionTower:
        """The image tower, in parts.

        Raises:
            UnsupportedCLIP: if it is not a ViT like OpenAI's.
        """
        return ClipVisionTower(self.model.visual, self.mean, self.std)


def load_clip(name: str, pretrained_dir: Path | None = None, trust_weights: bool = False) -> LoadedCLIP:
    """Load a CLIP by name or path.

    Args:
        name: one of OpenAI's names (``ViT-B/32``), always with QuickGELU; an open_clip name, with the pretraining
            behind a colon where there are several (``ViT-B-32:laion2b_s34b_b79k``); a file in OpenAI's release form; or
            an open_clip model folder (``open_clip_config.json`` and ``open_clip_model.safetensors``).
        pretrained_dir: where OpenAI's files are looked for (``ViT-B-32.pt``) and downloads are kept.
        trust_weights: load an OpenAI-form archive although its checksum is not a published one.

    Raises:
        WeightsError: if there is no such model or its weights are not what they should be.
    """
    path = Path(name)
    if path.is_dir():
        loaded = _from_folder(path)
    elif path.is_file():
        loaded = _from_archive(path, None, trust_weights)
    elif name in OPENAI_NAMES:
        loaded = _openai_model(OPENAI_NAMES[name], pretrained_dir, trust_weights)
    else:
        loaded = _open_clip_model(name, pretrained_dir, trust_weights)
    loaded.model.float().eval().requires_grad_(False)
    return loaded


def known_context_length(name: str) -> int | None:
    """Tokens that a CLIP's text tower takes, as far as that is known without its weights.

    Args:
        name: as for `load_clip`.

    Returns:
        None where the weights are needed to tell, or where there is no such model, which `load_clip` explains.
    """
    path = Path(name)
    if path.is_file():
        return None
    if path.is_dir():
        try:
            config = json.loads((path / FOLDER_CONFIG).read_text(encoding="utf-8"))["model_cfg"]
        except (OSError, ValueError, LookupError, TypeError):
            return None
    else:
        config = open_clip.get_model_config(OPENAI_NAMES.get(name, name.partition(":")[0]))
    text = config.get("text_cfg") if isinstance(config, dict) else None
    length = text.get("context_length", DEFAULT_CONTEXT) if isinstance(text, dict) else None
    return length if isinstance(length, int) else None


def _openai_model(name: str, pretrained_dir: Path | None, trust_weights: bool) -> LoadedCLIP:
    """OpenAI's weights by open_clip's name of the model: from `pretrained_dir` if they are there, else downloaded."""
    if pretrained_dir is not None:
        archive = pretrained_dir / published_file(name)[0]
        if archive.is_file():
            return _from_archive(archive, name, trust_weights)
    return _download(f"{name}-quickgelu", "openai", pretrained_dir, published_file(name)[0])


def _open_clip_model(name: str, pretrained_dir: Path | None, trust_weights: bool) -> LoadedCLIP:
    """A model by its open_clip name."""
    model_name, _, tag = name.partition(":")
    tags = open_clip.pretrained.list_pretrained_tags_by_model(model_name)
    if not tags:
        known = ", ".join([*OPENAI_NAMES, "an open_clip name"])
        raise WeightsError(
            f"--pretrained_clip_name {name}: no such file, folder or model with pretrained weights. Give one of "
            f"{known}, or the path of a weight file in OpenAI's form or of an open_clip model folder."
        )
    if not tag:
        tag = "openai" if "openai" in tags else tags[0]
        if tag != "openai" and len(tags) > 1:
            raise WeightsError(
                f"{name} has several pretrainings; say which, {name}:TAG, with TAG one of {', '.join(tags)}"
            )
    if tag not in tags:
        raise WeightsError(f"{model_name} has no pretraining {tag!r}; open_clip knows {', '.join(tags)}")
    if tag == "openai":
        return _openai_model(model_name.removesuffix("-quickgelu"), pretrained_dir, trust_weights)
    return _download(model_name, tag, pretrained_dir, None)


def _download(model_name: str, tag: str, cache_dir: Path | None, file_name: str | None) -> LoadedCLIP:
    """open_clip's own download of named weights, or what an earlier one left."""
    # an address of its own is asked once; the hub is asked again and again for most of a minute
    from_hub = open_clip.pretrained.get_pretrained_cfg(model_name, tag).get("hf_hub")
    unknown = unknown_host(huggingface_hub.constants.ENDPOINT) if from_hub else None
    try:
        cache = None if cache_dir is None else str(cache_dir)
        with _hub_offline() if unknown else contextlib.nullcontext():
            model = open_clip.create_model(model_name, tag, cache_dir=cache, weights_only=True)
            tokenizer = open_clip.get_tokenizer(model_name)  # some come from the hub, too
    except Exception as error:  # whatever the network or the hub's client raises
        advice = f" Or put {file_name} in the folder given by --pretrained_dir." if file_name else ""
        nothing_kept = isinstance(error.__context__, FileNotFoundError)  # of the hub's client, by way of open_clip
        reason = f"{unknown} cannot be resolved, and no earlier download is kept" if unknown and nothing_kept else error
        raise WeightsError(
            f"open_clip could not fetch {model_name} ({tag}): {reason}. Is there a network connection?{advice}"
        ) from error
    return LoadedCLIP(model, tokenizer, *_normalisation(model))


def unknown_host(url: str) -> str | None:
    """The host of an address if its name cannot be resolved; None if it can, or if that is a proxy's to judge."""
    address = urlsplit(url)
    host = address.hostname or ""
    proxies = urllib.request.getproxies()
    if (address.scheme in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return None
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return host
    return None


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Within this the hub's client takes what it finds in its cache and asks nobody, as with HF_HUB_OFFLINE=1."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    logging.disable(logging.ERROR)  # open_clip logs the client's advice to unset a variable that nobody has set
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _from_folder(folder: Path) -> LoadedCLIP:
    """An open_clip model folder, which carries its own architecture."""
    for needed in (FOLDER_CONFIG, FOLDER_WEIGHTS):
        if not (folder / needed).is_file():
            raise WeightsError(f"{folder} is no open_clip model folder: {needed} is missing")
    source = f"local-dir:{folder}"
    model = _architecture(source)
    try:
        state = load_file(folder / FOLDER_WEIGHTS)
    except Exception as error:  # safetensors has an error type of its own that it does not export in all versions
        raise WeightsError(f"{folder / FOLDER_WEIGHTS} is not a safetensors file: {error}") from error
    _load_checked(model, state, folder / FOLDER_WEIGHTS)
    tokenizer = _tokenizer_of(source, (folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
    return LoadedCLIP(model, tokenizer, *_normalisation(model))


@cache
def _tokenizer_of(source: str, configuration: str) -> Any:
    """A folder's tokenizer, made once while its configuration stays the same: that takes longer than a small model."""
    return open_clip.get_tokenizer(source)


def _from_archive(path: Path, name: str | None, trust_weights: bool) -> LoadedCLIP:
    """A file in OpenAI's release form: a TorchScript archive in half precision.

    Args:
        path: the file.
        name: open_clip's name of the model it should hold; None to take the architecture from the shapes.
        trust_weights: do not insist on a published checksum.
    """
    _check_checksum(path, name, trust_weights)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch calls TorchScript deprecated; OpenAI's files are it
            state = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: expected a TorchScript archive as OpenAI releases them, found something else ({_kind(path)}). "
            f"For weights in another form give an open_clip model folder. ({str(error).splitlines()[0]})"
        ) from error
    for buffer in ARCHIVE_BUFFERS:
        state.pop(buffer, None)
    if name is None:
        model = _model_from_shapes(path, state)
    else:
        model = _architecture(f"{name}-quickgelu")
        _load_checked(model, state, path)
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return LoadedCLIP(model, open_clip.get_tokenizer("ViT-B-32-quickgelu"), mean, std)


def _architecture(name: str) -> nn.Module:
    """A model without weights; open_clip's warning that there are none is not for the user to see."""
    logging.disable(logging.WARNING)
    try:
        return open_clip.create_model(name, load_weights=False)
    finally:
        logging.disable(logging.NOTSET)


def _model_from_shapes(path: Path, state: dict[str, Tensor]) -> nn.Module:
    """open_clip's own reading of an architecture from the shapes of OpenAI's tensors."""
    try:
        return open_clip.model.build_model_from_openai_state_dict(state, cast_dtype=torch.float32)
    except (KeyError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{path}: expected the tensors of one of OpenAI's CLIPs, found {len(state)} tensors that do not make one: "
            f"{error}"
        ) from error


def published_file(name: str) -> tuple[str, str]:
    """File name and SHA-256 that OpenAI published for a model, both parts of the address it is offered at.

    Args:
        name: open_clip's name of the model, for example ``ViT-B-32``.
    """
    checksum, file_name = open_clip.pretrained.get_pretrained_url(name, "openai").split("/")[-2:]
    return file_name, checksum


def _check_checksum(path: Path, name: str | None, trust_weights: bool) -> None:
    """Refuse an archive that OpenAI did not publish: loading a TorchScript archive can run code that is in it."""
    if trust_weights:
        return
    names = OPENAI_NAMES.values() if name is None else [name]
    published = {checksum: file_name for file_name, checksum in map(published_file, names)}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else _digest(file)
    if digest.hexdigest() in published:
        return
    expected = "the SHA-256 of one of OpenAI's releases" if name is None else f"SHA-256 {next(iter(published))}"
    raise WeightsError(
        f"{path}: expected {expected}, found {digest.hexdigest()}. The file may be damaged or not OpenAI's, and a "
        "TorchScript archive can run code when it is loaded. Download it again, or give --trust_weights if you know "
        "where it comes from."
    )


def _digest(file):
    """`hashlib.file_digest` for Python 3.10."""
    digest = hashlib.sha256()
    for block in iter(lambda: file.read(1 << 20), b""):
        digest.update(block)
    return digest


def _kind(path: Path) -> str:
    """What a file looks like, for a message."""
    if path.stat().st_size == 0:
        return "an empty file"
    return "a zip file without TorchScript" if zipfile.is_zipfile(path) else "not a zip file"


def _load_checked(model: nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Load weights that must fit exactly.

    Raises:
        WeightsError: listing what is missing, unexpected or of another shape, expected and found.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = [
        f"{name}: expected {expected[name]}, found {found[name]}"
        for name in expected
        if name in found and expected[name] != found[name]
    ]
    problems += [f"{name}: expected {expected[name]}, missing" for name in expected if name not in found]
    problems += [f"{name}: not expected, found {found[name]}" for name in found if name not in expected]
    if problems:
        listed = "\n  ".join(problems[:10])
        raise WeightsError(f"{source} does not hold this model's weights ({len(problems)} tensors differ):\n  {listed}")
    model.load_state_dict(state)


def _normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the colour channels that a model was trained with."""
    config = model.visual.preprocess_cfg
    return tuple(config["mean"]), tuple(config["std"])
