"""The forms that the toy dataset's annotation files can have: those in which datasets are published.

A form names the videos as its dataset does and writes the annotation files that the dataset's script reads:

    msrvtt       videos/video0.mp4; MSRVTT_data.json, train.csv, test.csv, with the test sets as a column, and beside
                 them testTrainMulti_7030_splits of HMDB51
    vatex        videos/toy00000000_000000_000010.mp4; vatex_training_v1.0.json, vatex_validation_v1.0.json,
                 test_list.txt, ten captions a video
    activity     videos/v_toy00000000.mp4; train.json, val_1.json, two sentences a video, in some not in their order
    didemo       videos/10000000@N00_0_toy.mp4; train_data.json, test_data.json, two descriptions a video
    msvd         videos/toy00000000_0_10.mp4; train_list.txt, test_list.txt, raw-captions.pkl, three to five captions
    lsmdc        videos/1001_Moving_Left/1001_Moving_Left_00.00.00.000-00.00.03.000.mp4, a film a motion;
                 LSMDC16_annos_training.csv, LSMDC16_challenge_1000_publictect.csv
    kinetics400  videos/moving left/toy00000000_000000_000010.mp4; labels/train.csv, labels/validate.csv, a class a
                 motion
"""

import csv
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MSRVTT = "msrvtt"
# one caption in several
WORDINGS = (
    *("{}", "there is {}", "a clip of {}", "{} is shown", "we see {}", "the video shows {}", "{} in a short clip"),
    *("someone filmed {}", "on the screen is {}", "here one sees {}"),
)
CLIP_SECONDS = 10  # that names of clips claim, as of those that are published
FILM_CLIP_SECONDS = 3


@dataclass(frozen=True)
class ToyVideo:
    """What annotation files say of a video.

    number: from 0, unique. split: "train" or "test". motion: the index of the class, and its name. caption: its own.
    seconds: its length.
    """

    number: int
    split: str
    motion: int
    motion_name: str
    caption: str
    seconds: float

    @property
    def youtube_id(self) -> str:
        """Eleven characters, as those of YouTube."""
        return f"toy{self.number:08d}"

    @property
    def clip(self) -> tuple[int, int]:
        """From when to when of a longer video it claims to be, in seconds."""
        start = self.number * 7 % 3600
        return start, start + CLIP_SECONDS

    @property
    def sentences(self) -> tuple[str, str]:
        """The caption in two sentences, in the order of time."""
        article, colour, shape, *motion = self.caption.split()
        return f"There is {article} {colour} {shape}.", f"It is {' '.join(motion)}."


@dataclass(frozen=True)
class ToyDataset:
    """What annotation files say of all videos.

    videos: in the order of their numbers, those of training first. motions: the classes, of which a small dataset may
    have no videos. num_test: videos of a test set.
    """

    videos: Sequence[ToyVideo]
    motions: Sequence[str]
    num_test: int

    def of(self, split: str) -> list[ToyVideo]:
        """The videos of a split."""
        return [video for video in self.videos if video.split == split]


@dataclass(frozen=True)
class Form:
    """A published form.

    name: the path of a video from the folder of videos. write: writes the annotation files to the dataset's folder.
    files: these in words.
    """

    name: Callable[[ToyVideo], str]
    write: Callable[[Path, ToyDataset], None]
    files: str


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _stem(form: str, video: ToyVideo) -> str:
    """A video's name as lists have it: without folders and suffix."""
    return FORMS[form].name(video).rpartition("/")[2].removesuffix(".mp4")


# --- MSR-VTT, and HMDB51 beside it ------------------------------------------------------------------------------


def name_msrvtt(video: ToyVideo) -> str:
    return f"video{video.number}.mp4"


def write_msrvtt(folder: Path, toy: ToyDataset) -> None:
    entries, sentences = [], []
    for video in toy.videos:
        video_id = _stem(MSRVTT, video)
        entries.append(
            {
                "category": video.motion,
                "url": "",
                "video_id": video_id,
                "start time": 0.0,
                "end time": video.seconds,
                "split": video.split,
                "id": video.number,
            }
        )
        sentences.append({"caption": video.caption, "video_id": video_id, "sen_id": video.number})
    write_json(folder / "MSRVTT_data.json", {"info": {}, "videos": entries, "sentences": sentences})

    train, test = toy.of("train"), toy.of("test")
    several = len(test) > toy.num_test
    rows = []
    for place, video in enumerate(test):
        row = [f"ret{place}", f"msr{video.number}", _stem(MSRVTT, video), video.caption]
        rows.append([*row, 1 + place // toy.num_test] if several else row)
    write_csv(folder / "train.csv", ["video_id"], [[_stem(MSRVTT, video)] for video in train])
    write_csv(folder / "test.csv", ["key", "vid_key", "video_id", "sentence", *(["set"] if several else [])], rows)
    write_hmdb51_splits(folder / "testTrainMulti_7030_splits", toy)


def write_hmdb51_splits(folder: Path, toy: ToyDataset) -> None:
    """Writes `<motion>_test_split<k>.txt` for k = 1, 2, 3: lines `file mark `, mark 1 for training and 2 for test.

    The test videos of split 1 are those of MSR-VTT's form, of all sets; of splits 2 and 3 the first and second as many
    of the training videos.
    """
    folder.mkdir()
    num_train, num_test = len(toy.of("train")), len(toy.of("test"))
    for split in (1, 2, 3):
        first = num_train if split == 1 else (split - 2) * num_test
        test = range(first, first + num_test)
        for motion, name in enumerate(toy.motions):
            lines = [
                f"{name_msrvtt(video)} {2 if video.number in test else 1} "
                for video in toy.videos
                if video.motion == motion
            ]
            write_lines(folder / f"{name.replace(' ', '_')}_test_split{split}.txt", lines)


# --- VATEX, ActivityNet Captions, DiDeMo, MSVD, LSMDC -----------------------------------------------------------


def name_vatex(video: ToyVideo) -> str:
    start, end = video.clip
    return f"{video.youtube_id}_{start:06d}_{end:06d}.mp4"


def write_vatex(folder: Path, toy: ToyDataset) -> None:
    for split, name in (("train", "training"), ("test", "validation")):
        entries = [
            {
                "videoID": _stem("vatex", video),
                "enCap": [wording.format(video.caption) for wording in WORDINGS],
                "chCap": ["一段视频"] * len(WORDINGS),
            }
            for video in toy.of(split)
        ]
        write_json(folder / f"vatex_{name}_v1.0.json", entries)
    write_lines(folder / "test_list.txt", [_stem("vatex", video) for video in toy.of("test")])


def name_activity(video: ToyVideo) -> str:
    return f"v_{video.youtube_id}.mp4"


def write_activity(folder: Path, toy: ToyDataset) -> None:
    for split, name in (("train", "train.json"), ("test", "val_1.json")):
        content = {}
        for video in toy.of(split):
            times = [[0.0, video.seconds], [video.seconds / 2, video.seconds]]
            # in the published files later sentences begin with a blank, and some come before earlier ones
            sentences = [video.sentences[0], f" {video.sentences[1]}"]
            order = -1 if video.number % 6 == 0 else 1
            content[_stem("activity", video)] = {
                "duration": video.seconds,
                "timestamps": times[::order],
                "sentences": sentences[::order],
            }
        write_json(folder / name, content)


def name_didemo(video: ToyVideo) -> str:
    return f"{10_000_000 + video.number}@N00_{video.number}_toy.mp4"


def write_didemo(folder: Path, toy: ToyDataset) -> None:
    for split, name in (("train", "train_data.json"), ("test", "test_data.json")):
        entries = [
            {
                "num_segments": 6,
                "description": video.sentences[part],
                "dl_link": "",
                "times": [[3 * part, 3 * part + 2]] * 4,
                "video": name_didemo(video),
                "annotation_id": 2 * video.number + part,
            }
            for part in (0, 1)  # the descriptions of a video do not follow each other in the published files
            for video in toy.of(split)
        ]
        write_json(folder / name, entries)


def name_msvd(video: ToyVideo) -> str:
    start, end = video.clip
    return f"{video.youtube_id}_{start}_{end}.mp4"


def write_msvd(folder: Path, toy: ToyDataset) -> None:
    captions = {
        _stem("msvd", video): [wording.format(video.caption).split() for wording in WORDINGS[: 3 + video.number % 3]]
        for video in toy.videos
    }
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    for split in ("train", "test"):
        write_lines(folder / f"{split}_list.txt", [_stem("msvd", video) for video in toy.of(split)])


def _film_times(video: ToyVideo) -> tuple[str, str]:
    """From when to when of its film a clip is, in LSMDC's form: "00.01.03.000"."""
    starts = (video.number * FILM_CLIP_SECONDS, (video.number + 1) * FILM_CLIP_SECONDS)
    first, last = (f"{s // 3600:02d}.{s // 60 % 60:02d}.{s % 60:02d}.000" for s in starts)
    return first, last


def name_lsmdc(video: ToyVideo) -> str:
    words = video.motion_name.replace(",", "").title().split()
    film = "_".join([f"{1001 + video.motion}", *words])
    return f"{film}/{film}_{'-'.join(_film_times(video))}.mp4"


def write_lsmdc(folder: Path, toy: ToyDataset) -> None:
    names = {"train": "LSMDC16_annos_training.csv", "test": "LSMDC16_challenge_1000_publictect.csv"}
    for split, name in names.items():
        lines = [
            "\t".join([_stem("lsmdc", video), *_film_times(video), *_film_times(video), f"{video.caption}."])
            for video in toy.of(split)
        ]
        write_lines(folder / name, lines)


# --- Kinetics-400 -----------------------------------------------------------------------------------------------


def name_kinetics400(video: ToyVideo) -> str:
    return f"{video.motion_name}/{name_vatex(video)}"


def write_kinetics400(folder: Path, toy: ToyDataset) -> None:
    (folder / "labels").mkdir()
    for split, name in (("train", "train"), ("test", "validate")):
        rows = [[video.motion_name, video.youtube_id, *video.clip, name] for video in toy.of(split)]
        write_csv(folder / "labels" / f"{name}.csv", ["label", "youtube_id", "time_start", "time_end", "split"], rows)


FORMS: Mapping[str, Form] = {
    MSRVTT: Form(name_msrvtt, write_msrvtt, "MSRVTT_data.json, train.csv and test.csv"),
    "vatex": Form(name_vatex, write_vatex, "vatex_training_v1.0.json, vatex_validation_v1.0.json and test_list.txt"),
    "activity": Form(name_activity, write_activity, "train.json and val_1.json"),
    "didemo": Form(name_didemo, write_didemo, "train_data.json and test_data.json"),
    "msvd": Form(name_msvd, write_msvd, "train_list.txt, test_list.txt and raw-captions.pkl"),
    "lsmdc": Form(name_lsmdc, write_lsmdc, "LSMDC16_annos_training.csv and LSMDC16_challenge_1000_publictect.csv"),
    "kinetics400": Form(name_kinetics400, write_kinetics400, "labels/train.csv and labels/validate.csv"),
}
