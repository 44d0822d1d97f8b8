"""Building a method's model, and setting it to what a run trained."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.settings import former_settings, model_settings, range_problems
from modules.clip.loader import LoadedCLIP
from modules.methods import METHODS
from modules.model.video_text import VideoTextModel
from modules.runtime.identity import list_differences
from modules.runtime.run_folder import BEST


def build_model(
    method: str, settings: Any, clip: LoadedCLIP, num_frames: int, max_words: int, seed: int
) -> VideoTextModel:
    """A method's model, its initial values a function of the seed alone.

    Args:
        method: its name.
        settings: an object of its settings class.
        clip: what it is built around; the method may change it.
        num_frames: T, frames a video.
        max_words: tokens a caption, start and end included.
        seed: of what the method initialises.

    Raises:
        UserError: if the settings do not fit this CLIP, or are out of their ranges.
    """
    if problems := range_problems(settings):
        raise UserError("\n".join(problems))
    torch.manual_seed(seed)
    model = METHODS[method].build(clip, settings, num_frames, max_words)
    model.note_buffers_of_clip(clip.model)
    return model


def load_trained(
    model: VideoTextModel, checkpoint: Mapping[str, Any], path: Path, now: Mapping[str, Any], settings: Any
) -> str | None:
    """Set a model, built like the one that a checkpoint was trained in, to what was trained.

    Args:
        model: to set.
        checkpoint: what `path` holds.
        now: the ``identity`` of this model (at least ``method``, ``clip`` and the method's settings) and ``clip_name``.
        settings: the method's.

    Returns:
        What is computed otherwise than when it was trained, for the log; None for nothing.

    Raises:
        UserError: if the checkpoint is of another method, method settings or CLIP; the message lists the differences.
    """
    names = ["method", "clip", *model_settings(settings)]
    if differences := list_differences(checkpoint, now, names, former_settings(type(settings))):
        listed = "\n  ".join(differences)
        raise UserError(f"{path} was trained in another model; give the same settings:\n  {listed}")
    model.load_trained_state(checkpoint["model"])
    changed = METHODS[now["identity"]["method"]].changed(checkpoint)
    return None if changed is None else f"{path} is from before a change: {changed}"


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a folder of a training holds, or the file given.

    Raises:
        UserError: if there is none.
    """
    if not source.is_dir():
        return source
    missing = f"{source} holds no {BEST}: give the --output_dir of a training, or a checkpoint"
    return find_in_run(source, BEST, missing)


def find_in_run(folder: Path, name: str, missing: str) -> Path:
    """A file that the folder of a run holds.

    Args:
        folder: of the run.
        name: of the file.
        missing: what to say where it is not there.

    Raises:
        UserError: if it is not there; of a folder that holds a run for each of several splits, naming one of them.
    """
    if (folder / name).is_file():
        return folder / name
    if splits := sorted(folder.glob(f"split*/{name}")):
        raise UserError(f"{folder} holds a run for each of {len(splits)} splits: give one, such as {splits[0].parent}")
    raise UserError(missing)


def settings_of(settings: type, trained: Mapping[str, Any]) -> Any:
    """A settings object as a checkpoint has it; a setting that it lacks has the value from before there was one."""
    values = {**former_settings(settings), **trained} if trained else {}
    names = {field.name for field in dataclasses.fields(settings)}
    return settings(**{name: value for name, value in values.items() if name in names})
