"""What a method is."""

from collections.abc import Callable
from dataclasses import dataclass
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
    """

    summary: str
    settings: type
    build: Callable[[LoadedCLIP, Any, int, int], VideoTextModel]
    trains: bool
