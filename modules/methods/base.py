"""What a method is."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from common.settings import setting
from modules.clip.loader import LoadedCLIP
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class EncoderSettings:
    """What can be set about a video encoder.

    A method that has something of its own for each frame behind a merge refuses ``merge_frames``.
    """

    merge_frames: str = setting(
        "", "layers before which neighbouring frames are merged in pairs, such as 4,8; none if empty", metavar="LAYERS"
    )

    def __post_init__(self) -> None:
        """Layers that are given in another order are the same setting."""
        self.sort_layers("merge_frames")

    def sort_layers(self, name: str) -> None:
        """Write a setting that is a list of layers in the one way there is; one that is none is left to `problems`."""
        with contextlib.suppress(ValueError):
            object.__setattr__(self, name, ",".join(map(str, parse_layers(getattr(self, name)))))

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        try:
            parse_layers(self.merge_frames)
        except ValueError as error:
            return [f"--merge_frames {error}"]
        return []

    @property
    def merge_before(self) -> tuple[int, ...]:
        """The layers, rising."""
        return parse_layers(self.merge_frames)


def parse_layers(text: str) -> tuple[int, ...]:
    """Layers counted from 0, rising: ``4,8`` → (4, 8); none for an empty text.

    Raises:
        ValueError: if it is no such list.
    """
    if not text.strip():
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"must be numbers of layers with commas between them, such as 4,8; found {text!r}")
    layers = [int(part) for part in parts]
    if len(set(layers)) < len(layers):
        raise ValueError(f"names a layer twice: {text}")
    return tuple(sorted(layers))


@dataclass(frozen=True)
class Properties:
    """What holds of a method's video embeddings, at its defaults and whatever was trained.

    That a video's embedding depends neither on its neighbours in a batch nor on what stands in its padding holds of
    every method.

    Attributes:
        still: a video of equal frames has the embedding of its picture alone.
        any_length: videos may be longer or shorter than those the model was built for, and how far a video is padded
            makes no difference; else the model refuses another length.
        order_blind: the order of the frames makes no difference.
    """

    still: bool
    any_length: bool
    order_blind: bool


@dataclass(frozen=True)
class Method:
    """A way to make a video–text model of CLIP.

    Attributes:
        summary: one line for ``--help``.
        settings: a frozen dataclass of `common.settings.setting` fields, an `EncoderSettings`; each becomes a flag.
        build: from CLIP, the settings, the frames a video T and the words a caption, the model.
        trains: whether it has something to train; if so it cannot be evaluated without a checkpoint.
        properties: what holds of its embeddings; None for a method that does not say.
        recipe: its own defaults of flags, by name (``{"lr": 1e-4}``); a dataset's count before these.
        changed: what this code does otherwise than the one that trained a checkpoint, in words; None for nothing.
    """

    summary: str
    settings: type
    build: Callable[[LoadedCLIP, Any, int, int], VideoTextModel]
    trains: bool
    properties: Properties | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    changed: Callable[[Mapping[str, Any]], str | None] = lambda checkpoint: None
