"""How videos were prepared before they are read: compressed, packed, or as they are; a number depends on it.

What is known of it is what the programs that prepare videos left beside them: `compress_video.json` in the folder of
compressed videos, `pack_frames.json` in a pack. As a record that is a small dictionary for JSON, with how in `videos`:

    {"videos": "as they are"}
    {"videos": "compressed", "fps": 3, "short_side": 224, "codec": "libx264", "crf": 23, "pyav": …, "of": {…}}
    {"videos": "packed", "format": "jpeg", "quality": 90, "fps": 3, "short_side": 224, "of": {…}}

`of` is the record of the videos that were compressed or packed. Records hold no paths: folders may move.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.errors import UserError
from dataloaders.video.pack_index import PackIndex

COMPRESSED_NOTE = "compress_video.json"
COMPRESSED_SUFFIX = ".mp4"
HOW = "videos"
AS_THEY_ARE = {HOW: "as they are"}
NOT_RECORDED = {HOW: "not recorded"}  # by a version of this code that did not, or in a note that cannot be read
SEVERAL_WAYS = "in several ways"

Record = dict[str, Any]


def preparation_of(paths: Iterable[Path], pack: PackIndex | None = None) -> Record:
    """The record of some videos.

    Args:
        paths: their files. What `compress_video.py` made is an MP4 file in or below a folder with its note; files and
            folders may be links.
        pack: read in place of the files.

    Raises:
        UserError: a note cannot be read; the message names it.
    """
    if pack is not None:
        return _packed(pack)
    notes: dict[Path, Record | None] = {}
    places = dict.fromkeys(_place(path) for path in dict.fromkeys(paths))
    return combine([_compressed(Path(folder), notes) if is_mp4 else AS_THEY_ARE for folder, is_mp4 in places])


def combine(records: Iterable[Record]) -> Record:
    """What all records say, where they say the same; else all that they say, in `ways`."""
    ways: list[Record] = []
    for record in records:
        ways += [way for way in record.get("ways", [record]) if way not in ways]
    return ways[0] if len(ways) == 1 else {HOW: SEVERAL_WAYS, "ways": ways}


def is_record(content: Any) -> bool:
    """Whether a value from a file is a record, as far as it is looked into."""
    return isinstance(content, Mapping) and isinstance(content.get(HOW), str)


def read_note(file: Path) -> dict[str, Any]:
    """What `compress_video.py` wrote: `fps` (a text), `size` and `crf`, and in newer notes `codec`, `pyav`,
    `max_seconds` and `of`.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        note = json.loads(file.read_text(encoding="utf-8"))
        _number(note["fps"])
        if not all(isinstance(note[name], int) for name in ("size", "crf")) or not is_record(
            note.get("of", AS_THEY_ARE)
        ):
            raise ValueError("fps, size and crf are needed")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}. It says how the videos were compressed") from error
    except (ValueError, KeyError, TypeError, ArithmeticError, RecursionError) as error:
        raise UserError(
            f"{file} does not say how the videos were compressed ({type(error).__name__}: {error}): copy it again, or "
            "compress the videos anew to another folder"
        ) from error
    return note


def _place(path: Path) -> tuple[str, bool]:
    """The folder that a file really lies in, if it is a link, and whether it is named like a compressed video."""
    file = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)
    return os.path.dirname(file), os.path.splitext(file)[1] == COMPRESSED_SUFFIX


def _compressed(folder: Path, notes: dict[Path, Record | None]) -> Record:
    """The record of the MP4 files of a folder; `notes` keeps what was found beside them."""
    folder = folder.resolve()
    for place in (folder, *folder.parents):
        if place not in notes:
            file = place / COMPRESSED_NOTE
            notes[place] = _record_of(read_note(file)) if os.path.isfile(file) else None
        if notes[place] is not None:
            return notes[place]
    return AS_THEY_ARE


def _record_of(note: Mapping[str, Any]) -> Record:
    how = {HOW: "compressed", "fps": _number(note["fps"]), "short_side": note["size"]}
    how |= {name: note[name] for name in ("codec", "crf", "max_seconds", "pyav") if note.get(name) is not None}
    return how | {"of": note.get("of", NOT_RECORDED)}


def _packed(pack: PackIndex) -> Record:
    settings = pack.settings.as_json()
    how = {HOW: "packed", **{name: settings[name] for name in ("format", "quality") if name in settings}}
    how |= {"fps": _number(settings["fps"]), "short_side": settings["size"]}
    return how | {"of": settings.get("of", NOT_RECORDED)}


def _number(fps: str) -> int | str:
    """A rate as a number where it is whole, else as it is written: "30000/1001"."""
    rate = Fraction(fps)
    return rate.numerator if rate.denominator == 1 else str(rate)
