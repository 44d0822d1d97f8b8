"""A small index of real video files with embeddings that are made up, so that it is known what is found."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.seeds import derive_seed
from helpers.videos import write_video
from search.store import Part, Stamp, Store, open_for_writing

WIDTH = 32
SECONDS = 8  # of a video of `make_videos`
RATE = 25  # its frames a second
SETTINGS = {
    "run": "",
    "method": "zero_shot",
    "pretrained_clip_name": "",
    "pretrained_dir": "",
    "max_frames": 4,
    "max_words": 12,
    "window": 2.0,
    "stride": 1.0,
    "width": WIDTH,
    "fingerprint": "made up",
}
JPEG = b"\xff\xd8\xff\xd9"


def vector(text: str) -> np.ndarray:
    """(WIDTH,) unit length: a direction that belongs to a text."""
    drawn = np.random.default_rng(derive_seed(text)).normal(size=WIDTH).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


def embed_texts(texts: Sequence[str]) -> np.ndarray:
    """(n, WIDTH) unit length."""
    return np.stack([vector(text) for text in texts])


def make_videos(folder: Path, names: Sequence[str], codec: str = "libx264") -> list[Path]:
    """Videos of `SECONDS` in which frame i shows i; see `helpers.videos.write_video`."""
    paths = []
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        paths.append(write_video(folder / name, codec=codec, frames=SECONDS * RATE, width=256, height=128))
    return paths


def made_part(name: str, picture: bytes = JPEG) -> Part:
    """What embedding a video of `SECONDS` gives where the window at second s shows just what "NAME s" says."""
    starts = range(SECONDS - 1)
    near = np.stack([vector(f"{name} {start}") for start in starts])
    return Part(float(SECONDS), [(start, start + 2.0) for start in starts], near, [picture] * len(near))


def add(store: Store, root: Path, path: Path, part: Part | str) -> None:
    """Add a video by its file."""
    name = f"{root.name}/{path.relative_to(root).as_posix()}"
    store.add(str(path), name, Stamp.of(path.stat()), part)


def make_index(index_dir: Path, root: Path, paths: Sequence[Path], picture: bytes = JPEG) -> Path:
    """An index of videos of a folder in which "STEM s" finds the window at second s of the video STEM."""
    with open_for_writing(index_dir, SETTINGS) as store:
        store.add_folder(str(root))
        for path in paths:
            add(store, root, path, made_part(path.stem, picture))
    return index_dir
