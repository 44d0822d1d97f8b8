"""MSVD for text-video retrieval: the split lists and captions that are customary.

`train_list.txt`, `val_list.txt` and `test_list.txt` have an id a line; `raw-captions.pkl` is a dictionary from id to
some 40 captions, each a list of words. Every caption is a sample, in training (48,774 pairs) as in evaluation (670
videos), in the order of the list and of the captions. Videos are `<id>.<any container>`, such as -4wsuPCjDBc_5_15.avi,
at any depth.

A pickle is a program that builds objects, and can be made to run anything. This one is read by an unpickler that knows
dictionaries, lists, tuples, sets, texts, bytes and numbers, and nothing else;
`preprocess/convert_msvd_captions.py` writes what it holds as JSON, which is taken in its place.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from common.settings import setting
from dataloaders.annotations import read_json, show
from dataloaders.datasets.retrieval.captions import (
    Benchmark,
    Captions,
    VideoList,
    are_texts,
    is_name,
    make_dataset,
    read_ids,
)
from dataloaders.samples import VideoLocation

TRAINING, TEST = "train_list.txt", "test_list.txt"
MSVD = Benchmark("MSVD", "-4wsuPCjDBc_5_15.avi")
# What a pickle may name: what pickles of Python 2 and of old protocols call by name in building sets.
BUILT_IN = {(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in (set, frozenset)}


class PlainUnpickler(pickle.Unpickler):
    """Builds containers, texts, bytes and numbers; raises UnpicklingError where a pickle asks for anything else."""

    def find_class(self, module: str, name: str) -> type:
        """A set type, the only ones that a pickle has to name."""
        if (kind := BUILT_IN.get((module, name))) is None:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, and captions are made of nothing but built-in containers and texts; it "
                "may be an attempt to run code"
            )
        return kind


def read_pickle(path: str | Path) -> tuple[dict, list[str]]:
    """The dictionary that a pickle holds, and its problem; no code in the file is run."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return {}, [f"no such file: {path}"]
    except OSError as error:
        return {}, [f"{path} cannot be read: {error.strerror}"]
    try:
        content = PlainUnpickler(io.BytesIO(data), encoding="utf-8").load()
    except Exception as error:  # a broken pickle makes the unpickler raise nearly anything
        return {}, [f"{path} cannot be read as a pickle of captions: {str(error) or type(error).__name__:.300}"]
    if not isinstance(content, dict) or not content:
        return {}, [f"{path} needs a dictionary that is not empty, found {content!s:.80}"]
    return content, []


def read_words(path: str | Path) -> tuple[dict[str, list[list[str]]], list[str]]:
    """The captions of each video as lists of words, of the pickle or of the JSON file made of it, and the problems.

    What is a JSON file is told by its suffix.
    """
    is_json = Path(path).suffix.lower() == ".json"
    content, problems = read_json(path, dict) if is_json else read_pickle(path)
    words = {}
    for video_id, captions in content.items():
        if is_name(video_id) and _are_captions(captions):
            words[video_id] = captions
        else:
            found = f"needs a text as id and a list of lists of words, found {captions!r:.80}"
            problems.append(f"entry {show(str(video_id))} of {path}: {found}")
    return words, problems


def _are_captions(value: Any) -> bool:
    # An empty list of words is a caption, an empty one, which the list that has the video will name.
    if not isinstance(value, list | tuple):
        return False
    lists = [list(words) if isinstance(words, tuple) else words for words in value]
    return bool(lists) and all(words == [] or are_texts(words) for words in lists)


@dataclass(frozen=True)
class MsvdSettings(VideoLocation):
    """Where MSVD's files are."""

    train_list: Path | None = setting(
        None, f"ids of the training videos: {TRAINING}", affects_results=False, metavar="FILE"
    )
    val_list: Path = setting(
        MISSING, f"ids of the evaluation videos: {TEST} or val_list.txt", affects_results=False, metavar="FILE"
    )
    data_path: Path = setting(
        MISSING,
        "captions: raw-captions.pkl, or the JSON file that preprocess/convert_msvd_captions.py makes of it",
        affects_results=False,
        metavar="FILE",
    )


def read_list(settings: MsvdSettings, part: str) -> VideoList:
    """The videos of a list of ids with the captions of the pickle; part: "train" or "val"."""
    ids, source = getattr(settings, f"{part}_list"), settings.data_path
    rows, problems = read_ids(ids)
    words, caption_problems = read_words(source)
    captions = Captions()
    for video_id, lists in words.items():
        captions.add(video_id, [" ".join(words) for words in lists], f"entry {show(video_id)} of {source}")
    flags = f"the list of ids (--{part}_list), the captions (--data_path)"
    return VideoList(ids, rows, captions, source, problems + caption_problems, flags)


# ours: there is no published setting at hand
RECIPE = {"batch_size": 128, "epochs": 5, "max_frames": 12, "max_words": 32}
DATASET = make_dataset(
    MSVD, MsvdSettings, read_list, official={"train_list": TRAINING, "val_list": TEST}, recipe=RECIPE
)
