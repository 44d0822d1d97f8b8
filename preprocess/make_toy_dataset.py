"""Renders the toy dataset: short H.264 videos of moving shapes, with annotation files in MSR-VTT's and HMDB51's form.

    python preprocess/make_toy_dataset.py --output_dir runs/toy/dataset
    python preprocess/make_toy_dataset.py --output_dir runs/toy/vatex --form vatex
    python preprocess/make_toy_dataset.py --output_dir runs/toy/dataset_events --level events

About a minute on one core. What it leaves in the folder:

    videos/video0.mp4 ...   56 x 56 pixels, every frame encoded by itself
    MSRVTT_data.json        captions of all videos; `category` is the index of the motion
    train.csv               column video_id
    test.csv                columns key, vid_key, video_id, sentence, set: in each of four test sets, which share no
                            video, one video and one caption a class
    testTrainMulti_7030_splits/moving_left_test_split1.txt …   the motions as classes, in three splits
    dataset.json            the settings that made it, and the names of colours, shapes and motions

--form makes the same videos with the annotation files of another dataset in their published form, and named as it names
its videos; `toy/forms.py` says which. That dataset's script runs on it, with the folder as DATA, its videos as VIDEOS
and a folder for the run as OUTPUT; docs/datasets.md shows one. These forms know no test sets: there is one, of
--num_test videos.

A class is an object and a motion: 108 in all. Videos come in pairs of opposite motions, of which one is exactly the
other backwards, down to the decoded pixels, so a model that ignores the order of frames cannot get more than half of
the motions right.

Level `motions`, of 24 frames: 18 objects (6 colours x 3 shapes) and 6 motions, one of which fills the clip. Arcs out
and back are added to every movement, so that frames in a wrong order say little about its axis either. In every video
stands one still object of another colour that the caption does not mention.

Level `events`, of 48 frames: 9 objects (3 colours x 3 shapes) and 12 motions, 4 single events and 8 of two in the order
of the caption. An event takes a quarter of the clip and begins at a random time; see `toy/events.py`. One still and one
drifting object, of other colours, are not mentioned.
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import numpy as np

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.progress import Progress
from preprocess.toy import shapes as toy
from preprocess.toy.events import LEVELS
from preprocess.toy.forms import FORMS, MSRVTT, ToyDataset, ToyVideo, write_json

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DatasetSettings:
    """What the files depend on. Counts are videos, always even since videos come in pairs of opposites."""

    level: str = "motions"
    seed: int = 0
    num_train: int = 1296  # 12 a class
    num_test: int = 108  # of a test set, 1 a class
    num_test_sets: int = 4
    num_frames: int | None = None  # of a video; None: the level's
    fps: int = 8
    quantiser: int = 16
    renderer_version: int | None = None  # None: the level's
    annotations_version: int = 3  # raise it whenever the annotation files change

    def __post_init__(self):
        level = LEVELS[self.level]
        for name in ("num_frames", "renderer_version"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(level, name))
        num_classes = len(level.captions)
        if self.num_train < 2 or self.num_train % 2 or self.num_test < 2 or self.num_test % 2:
            raise ValueError("num_train and num_test must be positive even numbers: videos come in pairs of opposites")
        if self.seed < 0 or self.num_test_sets < 1:
            found = f"{self.seed} and {self.num_test_sets}"
            raise ValueError(f"seed must be at least 0 and num_test_sets at least 1, found {found}")
        if self.num_test > num_classes:
            raise ValueError(f"num_test must be at most {num_classes}: equal captions in a test set would tie")


def render_split(settings: DatasetSettings, split: str):
    """Yields the split's videos, the two of a pair one after the other; classes take turns, in each test set anew."""
    level = LEVELS[settings.level]
    kinds = [
        (colour, shape, pair)
        for pair in range(len(level.motions) // 2)
        for shape in range(len(toy.SHAPES))
        for colour in range(level.colours)
    ]
    if split == "train":
        indices = list(range(settings.num_train // 2))
    else:  # a set's videos are the same ones, whatever its size
        sets = range(settings.num_test_sets)
        indices = [number * len(kinds) + index for number in sets for index in range(settings.num_test // 2)]
    for index in indices:
        rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
        colour, shape, pair = kinds[index % len(kinds)]
        yield from level.render_pair(rng, colour, shape, pair, settings.num_frames)


def write_video(path: Path, frames: np.ndarray, fps: int, quantiser: int) -> None:
    """Encodes (T, S, S, 3) uint8 RGB frames so that a frame's decoded pixels depend on that frame alone.

    By default H.264 predicts a frame from earlier ones and spends bits where its look-ahead suggests, so a
    clip and its reversal differ by tens of grey levels. Intra frames only, one quantiser and one thread make
    them equal, and the file the same in every run.
    """
    codec_options = {"g": "1", "bf": "0", "qp": str(quantiser), "threads": "1", "preset": "fast"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps, options=codec_options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def write_dataset(folder: Path, settings: DatasetSettings, form: str = MSRVTT) -> None:
    """Renders everything into an existing, empty folder; form: a name of `FORMS`."""
    motions = LEVELS[settings.level].motions
    videos = []
    total = settings.num_train + settings.num_test * settings.num_test_sets
    with Progress(total, "rendering", "video", "videos") as progress:
        for split in SPLITS:
            for video in render_split(settings, split):
                seconds = settings.num_frames / settings.fps
                videos.append(ToyVideo(len(videos), split, video.motion, motions[video.motion], video.caption, seconds))
                path = folder / "videos" / FORMS[form].name(videos[-1])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, video.frames, settings.fps, settings.quantiser)
                progress.update()
    FORMS[form].write(folder, ToyDataset(videos, motions, settings.num_test))
    names = {"colours": list(toy.COLOURS), "shapes": toy.SHAPES, "motions": motions}
    of_form = {} if form == MSRVTT else {"form": form}
    write_json(folder / "dataset.json", {"settings": asdict(settings), **of_form, **names})


def make_dataset(
    output_dir: str | Path, settings: DatasetSettings, overwrite: bool = False, form: str = MSRVTT
) -> Path:
    """Makes the dataset, or finds it made already with the same settings and in the same form; returns its folder.

    It is written beside its final place and renamed at the end, so an interrupted run leaves nothing
    half-made.

    Raises `FileExistsError` where the folder holds anything else and `overwrite` is not set.
    """
    output_dir = Path(output_dir)
    if output_dir.exists():
        if _made_with(output_dir) == (asdict(settings), form):
            print(f"{output_dir} is there already, made with the same settings.")
            return output_dir
        if not overwrite and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise FileExistsError(
                f"{output_dir} exists and was made with other settings, or is no toy dataset; "
                "choose another --output_dir, or give --overwrite to replace it"
            )
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as scratch:
        made = Path(scratch) / "dataset"
        made.mkdir()
        write_dataset(made, settings, form)
        if output_dir.exists():
            shutil.rmtree(output_dir)
        made.rename(output_dir)
    print(
        f"{settings.num_train} training and {settings.num_test_sets} x {settings.num_test} test videos in "
        f"{output_dir / 'videos'}; annotations in {FORMS[form].files} beside it"
    )
    return output_dir


def _made_with(folder: Path) -> tuple[dict, str] | None:
    """The settings and the form of a dataset; None of what is none."""
    path = folder / "dataset.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    return content["settings"], content.get("form", MSRVTT)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    default = DatasetSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder to make")
    parser.add_argument("--level", choices=list(LEVELS), default=default.level, help="what the videos show")
    parser.add_argument("--form", choices=list(FORMS), default=MSRVTT, help="of the annotation files")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--num_train", type=int, default=default.num_train, help="training videos, even")
    parser.add_argument("--num_test", type=int, default=default.num_test, help="videos of a test set, even, up to 108")
    parser.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    try:
        sets = {} if args.form == MSRVTT else {"num_test_sets": 1}
        settings = DatasetSettings(args.level, args.seed, args.num_train, args.num_test, **sets)
        make_dataset(args.output_dir, settings, args.overwrite, args.form)
    except (FileExistsError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
