"""What a method is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modules.clip.loader import LoadedCLIP
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class Method:
    """A way to make a video–text model of CLIP.

    Attributes:
        summary: one line for ``--help``.
        settings: a frozen dataclass of `common.settings.setting` fields; each becomes a flag.
        build: from CLIP, the settings, the frames a video T and the words a caption, the model.
        trains: whether it has something to train; if so it cannot be evaluated without a checkpoint.
        recipe: its own defaults of flags, by name (``{"lr": 1e-4}``); a dataset's count before these.
        changed: what this code does otherwise than the one that trained a checkpoint, in words; None for nothing.
    """

    summary: str
    settings: type
    build: Callable[[LoadedCLIP, Any, int, int], VideoTextModel]
    trains: bool
    recipe: Mapping[str, Any] = field(default_factory=dict)
    changed: Callable[[Mapping[str, Any]], str | None] = lambda checkpoint: None
