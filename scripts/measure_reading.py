"""How long every dataset's lists take to be read, and how much memory: at their real size, with made-up content.

  .venv/bin/python scripts/measure_reading.py                          # all datasets; writes docs/results/reading.json
  .venv/bin/python scripts/measure_reading.py --datatype vatex msvd    # these anew, beside what the file has of others
  .venv/bin/python scripts/measure_reading.py --table                  # prints what docs/datasets.md says of it

For each dataset its annotation files are made in a temporary folder, in their published form and with as many videos
and captions as are published (rounded for DiDeMo, LSMDC and Kinetics-400; of MSVD's test videos 40 captions each), and
an empty file for every video. A reader lists the folder and looks at names alone, so that empty files cost it what full
ones would; but they have just been written, and the system holds their names in memory: a first look at a slow disk or
a network takes longer. A fresh process then reads the lists as a training does at its start: both lists and, in
retrieval, whether they share videos. Noted are the seconds from the flags to the samples, of the clock and of the
processor, and the most memory that the process has held before and by then.
"""

import argparse
import json
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.memory import peak_resident_mb
from common.progress import Progress
from modules.runtime.run_folder import describe_machine, git_commit

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "reading.json"
WORDS = (
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "is",
    "are",
    "and",
    "then",
    "on",
    "in",
    "of",
    "red",
    "water",
    "plays",
    "walks",
)
CAPTION_WORDS, SENTENCE_WORDS, DESCRIPTION_WORDS = 10, 13, 8
VIDEOS = "videos"
Flags = dict[str, str]  # the flags that name a dataset's files, and those files from the folder that holds them


def texts(count: int, words: int, draw: random.Random) -> list[str]:
    """Sentences of some words."""
    return [" ".join(draw.choices(WORDS, k=words)) for _ in range(count)]


def make_videos(folder: Path, paths: Iterable[str]) -> None:
    """Empty files, in folders that are made."""
    made = set()
    for path in paths:
        place = folder / VIDEOS / path
        if place.parent not in made:
            place.parent.mkdir(parents=True, exist_ok=True)
            made.add(place.parent)
        place.touch()


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# --- Files of each dataset at its real size ---------------------------------------------------------------------


def make_msrvtt(folder: Path, draw: random.Random) -> Flags:
    ids = [f"video{number}" for number in range(10_000)]
    sentences = [
        {"caption": caption, "video_id": video_id, "sen_id": 20 * number + place}
        for number, video_id in enumerate(ids)
        for place, caption in enumerate(texts(20, CAPTION_WORDS, draw))
    ]
    write_json(folder / "MSRVTT_data.json", {"info": {}, "videos": [], "sentences": sentences})
    write_lines(folder / "MSRVTT_train.9k.csv", ["video_id", *ids[:9000]])
    rows = [f"ret{n},msr{n},{ids[9000 + n]},{text}" for n, text in enumerate(texts(1000, CAPTION_WORDS, draw))]
    write_lines(folder / "MSRVTT_JSFUSION_test.csv", ["key,vid_key,video_id,sentence", *rows])
    make_videos(folder, (f"{video_id}.mp4" for video_id in ids))
    files = {"train_csv": "MSRVTT_train.9k.csv", "val_csv": "MSRVTT_JSFUSION_test.csv", "data_path": "MSRVTT_data.json"}
    return files | {"expand_msrvtt_sentences": ""}


def youtube_id(number: int) -> str:
    """Eleven characters."""
    return f"{number:08d}_aB"


def make_vatex(folder: Path, draw: random.Random) -> Flags:
    ids = [f"{youtube_id(number)}_000012_000022" for number in range(28_991)]
    for name, part in (("training", ids[:25_991]), ("validation", ids[25_991:])):
        entries = [
            {"videoID": video_id, "enCap": texts(10, 15, draw), "chCap": texts(10, 15, draw)} for video_id in part
        ]
        write_json(folder / f"vatex_{name}_v1.0.json", entries)
    write_lines(folder / "test_list.txt", ids[25_991::2])
    make_videos(folder, (f"{video_id}.mp4" for video_id in ids))
    return {
        "train_json": "vatex_training_v1.0.json",
        "val_json": "vatex_validation_v1.0.json",
        "val_list": "test_list.txt",
    }


def make_activity(folder: Path, draw: random.Random) -> Flags:
    ids = [f"v_{youtube_id(number)}" for number in range(10_009 + 4_917)]
    for name, part in (("train", ids[:10_009]), ("val_1", ids[10_009:])):
        content = {
            video_id: {
                "duration": 120.5,
                "timestamps": [[30.25 * place, 30.25 * place + 40] for place in range(4)],
                "sentences": texts(4, SENTENCE_WORDS, draw),
            }
            for video_id in part
        }
        write_json(folder / f"{name}.json", content)
    make_videos(folder, (f"{video_id}.mp4" for video_id in ids))
    return {"train_json": "train.json", "val_json": "val_1.json"}


def make_didemo(folder: Path, draw: random.Random) -> Flags:
    names = [f"{10_000_000 + number}@N00_{number:010d}_0a1b2c3d4e.mov" for number in range(9_400)]
    for name, part in (("train", names[:8_400]), ("test", names[8_400:])):
        entries = [
            {"video": video, "description": text, "times": [[0, 1]] * 4, "num_segments": 6, "annotation_id": 1}
            for _ in range(4)
            for video, text in zip(part, texts(len(part), DESCRIPTION_WORDS, draw), strict=True)
        ]
        write_json(folder / f"{name}_data.json", entries)
    make_videos(folder, names)
    return {"train_json": "train_data.json", "val_json": "test_data.json"}


def make_msvd(folder: Path, draw: random.Random) -> Flags:
    ids = [f"{youtube_id(number)}_5_15" for number in range(1_970)]
    # 48,774 of the 1,200 training videos
    captions = {
        video_id: [text.split() for text in texts(41 if number < 774 else 40, 8, draw)]
        for number, video_id in enumerate(ids)
    }
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(captions, protocol=2))
    write_lines(folder / "train_list.txt", ids[:1_200])
    write_lines(folder / "test_list.txt", ids[1_300:])
    make_videos(folder, (f"{video_id}.avi" for video_id in ids))
    return {"train_list": "train_list.txt", "val_list": "test_list.txt", "data_path": "raw-captions.pkl"}


def make_lsmdc(folder: Path, draw: random.Random) -> Flags:
    def clip(number: int) -> str:
        film = f"{1000 + number // 600}_A_Film"
        return f"{film}/{film}_00.{number // 60 % 60:02d}.{number % 60:02d}.000-{number:06d}"

    clips = [clip(number) for number in range(102_000)]
    names = ("LSMDC16_annos_training.csv", "LSMDC16_challenge_1000_publictect.csv")
    for name, part in zip(names, (clips[:101_000], clips[101_000:]), strict=True):
        times = "\t".join(["00.00.51.926"] * 4)
        lines = [
            f"{path.split('/')[1]}\t{times}\t{text}"
            for path, text in zip(part, texts(len(part), CAPTION_WORDS, draw), strict=True)
        ]
        write_lines(folder / name, lines)
    make_videos(folder, (f"{path}.avi" for path in clips))
    return dict(zip(("train_csv", "val_csv"), names, strict=True))


def make_hmdb51(folder: Path, draw: random.Random) -> Flags:
    marks = [1] * 70 + [2] * 30 + [0] * 32
    for number in range(51):
        lines = [f"clip_{number}_{place}.avi {mark} " for place, mark in enumerate(marks)]
        write_lines(folder / "splits" / f"class_{number}_test_split1.txt", lines)
    make_videos(folder, (f"class_{n}/clip_{n}_{place}.avi" for n in range(51) for place in range(len(marks))))
    return {"split_dir": "splits"}


def make_ucf101(folder: Path, draw: random.Random) -> Flags:
    names = [f"Class{chr(65 + number // 26)}{chr(65 + number % 26)}" for number in range(101)]
    videos = [f"{names[number % 101]}/v_{number}" for number in range(9_537 + 3_783)]
    write_lines(folder / "splits" / "classInd.txt", (f"{label + 1} {name}" for label, name in enumerate(names)))
    train = [f"{video}.avi {number % 101 + 1}" for number, video in enumerate(videos[:9_537])]
    write_lines(folder / "splits" / "trainlist01.txt", train)
    write_lines(folder / "splits" / "testlist01.txt", (f"{video}.avi" for video in videos[9_537:]))
    make_videos(folder, (f"{video}.avi" for video in videos))
    return {"split_dir": "splits"}


def make_ssv2(folder: Path, draw: random.Random) -> Flags:
    names = [f"Doing {number} with something" for number in range(174)]
    (folder / "splits").mkdir()
    entries = [
        {
            "id": str(n),
            "label": text,
            "template": names[n % 174].replace("something", "[something]"),
            "placeholders": [],
        }
        for n, text in enumerate(texts(168_913 + 24_777, DESCRIPTION_WORDS, draw))
    ]
    for name, content in (
        ("labels", {name: str(label) for label, name in enumerate(names)}),
        ("train", entries[:168_913]),
        ("validation", entries[168_913:]),
    ):
        write_json(folder / "splits" / f"something-something-v2-{name}.json", content)
    make_videos(folder, (f"{entry['id']}.webm" for entry in entries))
    return {"split_dir": "splits"}


def make_kinetics400(folder: Path, draw: random.Random) -> Flags:
    names = [f"doing {number} things" for number in range(400)]
    videos = [(names[number % 400], youtube_id(number)) for number in range(260_000)]
    for name, part in (("train", videos[:240_000]), ("validate", videos[240_000:])):
        rows = [f"{label},{video},12,22,{name}" for label, video in part]
        write_lines(folder / "splits" / f"{name}.csv", ["label,youtube_id,time_start,time_end,split", *rows])
    make_videos(folder, (f"{label}/{video}_000012_000022.mp4" for label, video in videos))
    return {"split_dir": "splits"}


MAKERS: dict[str, Callable[[Path, random.Random], Flags]] = {
    "msrvtt": make_msrvtt,
    "vatex": make_vatex,
    "activity": make_activity,
    "didemo": make_didemo,
    "msvd": make_msvd,
    "lsmdc": make_lsmdc,
    "hmdb51": make_hmdb51,
    "ucf101": make_ucf101,
    "ssv2": make_ssv2,
    "kinetics400": make_kinetics400,
}


# --- Reading them in a process of its own -----------------------------------------------------------------------


def read(flags: Sequence[str]) -> dict[str, float]:
    """Read lists as a training does at its start, in this process; what was read, and what it took.

    flags: of a training, --datatype among them.
    """
    import main_task_recognition
    import main_task_retrieval
    from dataloaders.datasets import RECOGNITION, RETRIEVAL
    from modules.program.arguments import parse_arguments

    datatype = flags[flags.index("--datatype") + 1]
    retrieval = datatype in RETRIEVAL
    program = main_task_retrieval if retrieval else main_task_recognition
    datasets = RETRIEVAL if retrieval else RECOGNITION
    settings = program.RetrievalSettings if retrieval else program.RecognitionSettings
    before = peak_resident_mb()
    start, start_of_processor = time.monotonic(), time.process_time()
    data = program.read_data(parse_arguments(flags, "", datasets, settings))
    seconds, of_processor = time.monotonic() - start, time.process_time() - start_of_processor
    training, evaluation = (data.training, data.evaluation) if retrieval else (data.split.train, data.split.test)
    return {
        "training_samples": len(training),
        "training_videos": len({sample.video_id for sample in training}),
        "evaluation_samples": len(evaluation),
        "evaluation_videos": len({sample.video_id for sample in evaluation}),
        "seconds": round(seconds, 2),
        "processor_seconds": round(of_processor, 2),
        "memory_mb": round(peak_resident_mb()),
        "memory_before_mb": round(before),
    }


def measure(datatype: str) -> dict[str, float]:
    """Make a dataset's files and read them in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="reading.") as name:
        folder = Path(name)
        files = MAKERS[datatype](folder, random.Random(0))
        flags = ["--do_train", "--datatype", datatype, "--features_path", str(folder / VIDEOS)]
        for flag, file in files.items():
            flags += [f"--{flag}", str(folder / file)] if file else [f"--{flag}"]
        command = [sys.executable, str(Path(__file__).resolve()), "--read", json.dumps(flags)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"reading {datatype} failed")
    return json.loads(done.stdout.splitlines()[-1])


def make_table(content: dict) -> str:
    """What `docs/datasets.md` says, in Markdown."""
    lines = [
        "| `--datatype` | training samples, videos | evaluation samples, videos | seconds | memory |",
        "|---|---|---|---|---|",
    ]
    for datatype, row in content["datasets"].items():
        training, evaluation = (
            f"{row[f'{part}_samples']:,} of {row[f'{part}_videos']:,}" for part in ("training", "evaluation")
        )
        memory = f"{row['memory_mb'] - row['memory_before_mb']:,} MB"
        lines.append(f"| `{datatype}` | {training} | {evaluation} | {row['seconds']:.1f} | {memory} |")
    before = max(row["memory_before_mb"] for row in content["datasets"].values())
    told = (
        f"Memory is beside the {before:,} MB of the program itself. On {content['machine']}, with other work beside it."
    )
    return "\n".join([*lines, "", told])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and record, or print the table of what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datatype", choices=list(MAKERS), nargs="+", default=list(MAKERS), help="measured anew")
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what was measured")
    parser.add_argument("--table", action="store_true", help="print what is recorded, and measure nothing")
    parser.add_argument("--read", metavar="FLAGS", help=argparse.SUPPRESS)  # what a fresh process does
    args = parser.parse_args(argv)
    if args.read is not None:
        print(json.dumps(read(json.loads(args.read))))
        return
    if not args.table:
        rows = json.loads(args.record.read_text(encoding="utf-8"))["datasets"] if args.record.exists() else {}
        commit, machine = git_commit(), describe_machine()
        with Progress(len(args.datatype), "reading", "dataset", "datasets") as progress:
            for datatype in args.datatype:
                rows[datatype] = measure(datatype) | {"git_commit": commit}
                content = {"datasets": {name: rows[name] for name in MAKERS if name in rows}, "machine": machine}
                args.record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
                progress.update()
    print(make_table(json.loads(args.record.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
