"""Trainings on the toy testbed, some at a time, whose results are kept in a record that a later call goes on from.

Every training is one process of one thread. It reports its last epoch, so that nothing is chosen on a test set: its
last checkpoint is evaluated on the four test sets, or on a part of the training list that is held out. What is measured
is written to the record after each training, with the settings, the seed, the commit and the machine.
"""

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, quantiles, stdev
from typing import Any

import main_task_retrieval
from common.early import EXIT_CODE
from common.files import lock_folder, write_whole
from common.settings import former_settings, result_settings
from dataloaders.datasets import RETRIEVAL
from modules.methods import METHODS
from modules.program.arguments import Arguments, parse_arguments
from modules.runtime.run_folder import RESULTS as RESULTS_FILE
from modules.training.trainer import TrainSettings
from preprocess import pack_frames
from preprocess.make_toy_dataset import DatasetSettings, make_dataset
from preprocess.pretrain_toy_clip import WEIGHTS_NAME, Bars, PretrainSettings, pretrain
from scripts.demo_table import add_motion_accuracy, read_results
from scripts.studies.flops import video_gigaflops

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
LEVELS = ("motions", "events")
FRAMES = 8  # that the toy CLIPs and the demo look at
FEW = 6
MINUTES = (2, 4)  # of one core that a training takes
MAX_WORDS = 20  # where a run does not say
STEP = "step"  # what a record has under it what steps take, measured in turns, beside the runs
# what a checkpoint can be evaluated on, by the name that its metrics have in a record: a list, and flags
EVALUATIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "metrics": ("test.csv", ()),
    "shuffled": ("test.csv", ("--eval_frame_order", "shuffle")),
    "validation": ("validation.csv", ()),
}
OF_FILES = ("--output_dir", "-", "--train_csv", "-", "--val_csv", "-", "--data_path", "-", "--packed", "-")
# the demo's, but for what a study varies
STOP = (
    *("--method", "stop", "--spatial_width", "32", "--spatial_hidden", "64", "--temporal_width", "32"),
    *("--prompt_dropout", "0", "--lr", "3e-3", "--epsilon", "0.0009"),  # measured again since, ε is 0.001
)
DEFAULTS = "defaults"  # the runs of STOP as it is
BUDGET = ("--epochs", "5", "--batch_size", "36", "--n_display", "1", "--mask_same_video")


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Attributes:
        level: of the toy dataset.
        name: of the choice or the method.
        frames: of a video.
        seed: of the training.
        flags: of the main program; without ``--do_train`` it only evaluates.
        clip: the seed of the toy CLIP.
        evaluated: on which of `EVALUATIONS`.
        on: the digest of the toy CLIP's weights, of a run that was done before on a CLIP of another machine.
    """

    level: str
    name: str
    frames: int
    seed: int
    flags: tuple[str, ...]
    clip: int = 0
    evaluated: tuple[str, ...] = ("metrics",)
    on: str = ""

    @property
    def key(self) -> str:
        """What it is called in the record, and its folder."""
        name = self.name.replace(", ", "_").replace(" ", "_")
        clip = f"/clip{self.clip}" if self.clip else ""
        on = f"/on_{self.on}" if self.on else ""
        return f"{self.level}/{name}/frames{self.frames}/seed{self.seed}{clip}{on}"

    @property
    def trains(self) -> bool:
        """Whether there is something to train."""
        return "--do_train" in self.flags


@dataclass(frozen=True)
class Places:
    """Where a study reads and writes, and how much it makes.

    Attributes:
        toy: CLIP, dataset and pack of each level, made where they are missing.
        runs: what the trainings leave.
        record: JSON.
        steps: of the CLIPs' training, bars: what these have to reach. dataset: settings of the datasets.
        more: flags of every training.
        held_out: the last videos of the training list, which are not trained on and make the validation list.
    """

    toy: Path
    runs: Path
    record: Path
    steps: int = PretrainSettings.steps
    bars: Bars = Bars()
    dataset: Mapping[str, int] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    held_out: int = 0

    def of(self, level: str) -> Path:
        """The folder of a level's files; the easy one's are the demo's."""
        return self.toy if level == "motions" else self.toy / level

    def clip(self, level: str, seed: int) -> Path:
        """The folder of a CLIP."""
        return self.of(level) / (f"clip_seed{seed}" if seed else "clip")


def quick_places(folder: Path, record: Path) -> Places:
    """Of a study that takes seconds: one step on a batch of videos with a CLIP that knows nothing."""
    return Places(
        *(folder / "toy", folder / "runs", record),
        *(1, Bars(-1, -1, -1, -1, max_cosine=2, stills=50)),
        {"num_train": 36, "num_test_sets": 1},
        ("--epochs", "1"),
    )


def make_clip(level: str, seed: int, places: Places) -> None:
    """A CLIP, kept while its settings are the same."""
    settings = PretrainSettings(level=level, seed=seed, steps=places.steps)
    pretrain(places.clip(level, seed), settings, places.bars, overwrite=True)


def make_files(level: str, places: Places) -> None:
    """The first CLIP, videos and a pack of their frames, each kept while its settings are the same."""
    make_clip(level, 0, places)
    folder = places.of(level)
    make_dataset(folder / "dataset", DatasetSettings(level=level, **places.dataset), overwrite=True)
    videos, frames = folder / "dataset" / "videos", folder / "frames"
    pack = ["--input_root", str(videos), "--output_root", str(frames), "--fps", "8", "--format", "raw", "--overwrite"]
    if pack_frames.main(pack) not in (None, 0):
        sys.exit(f"{videos} could not be packed")


def call(flags: Sequence[str], log: Path, here: bool = False) -> None:
    """Run the retrieval program, its output behind what a file holds.

    Args:
        flags: of the program.
        log: the file.
        here: in this process, which spares the seconds in which another imports torch.

    Raises:
        RuntimeError: if it fails, with the end of what it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        if here:
            with redirect_stdout(file), redirect_stderr(file):
                status = main_task_retrieval.main(flags)
            if status == EXIT_CODE:  # the program took the signal, which was meant for all of them
                raise KeyboardInterrupt
        else:
            command = [sys.executable, "main_task_retrieval.py", *flags]
            status = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT).returncode
    if status:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(flags)} failed with {status}; the end of {log}:\n{tail}")


def made_of(run: Run, places: Places) -> dict[str, Any]:
    """What a run's result depends on: every setting, also those that no flag was given for, and the files."""
    arguments = arguments_of(run, places)
    settings = result_settings(arguments.method_settings, arguments.train, arguments.task)
    files = [
        asdict(PretrainSettings(level=run.level, seed=run.clip, steps=places.steps)),
        asdict(DatasetSettings(level=run.level, **places.dataset)),
        *([places.held_out] if places.held_out else []),
    ]
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
    shape = {"max_frames": run.frames, "max_words": arguments.common.max_words}
    return {"method": arguments.method, **shape, **settings, "files": digest}


def arguments_of(run: Run, places: Places) -> Arguments:
    """The command line of a run, but for its files."""
    shape = ("--max_frames", str(run.frames), "--max_words", str(MAX_WORDS))
    flags = [*shape, *run.flags, *(places.more if run.trains else ()), "--seed", str(run.seed), *OF_FILES]
    return parse_arguments(flags, "", RETRIEVAL, main_task_retrieval.RetrievalSettings)


def is_done(run: Run, places: Places, done: Mapping[str, Any], more: Iterable[str] = ()) -> bool:
    """Whether a record holds all that a run is evaluated on, and more by name, with these settings."""
    return is_alike(run, places, done) and all(name in done[run.key] for name in (*run.evaluated, *more))


def is_alike(run: Run, places: Places, done: Mapping[str, Any]) -> bool:
    """Whether a record holds a run with these settings; one that it lacks was as before there was such a setting."""
    return run.key in done and _has_settings(done[run.key], made_of(run, places))


def _has_settings(recorded: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run of a record is `made_of` these."""
    former = former_settings(METHODS[settings["method"]].settings, TrainSettings, main_task_retrieval.RetrievalSettings)
    before = {"max_words": MAX_WORDS, **former, **recorded["made_of"]}
    return all(before.get(name) == value for name, value in settings.items())


def clip_of(run: Mapping[str, Any]) -> str:
    """Which toy CLIP a recorded run is on: the digest of its weights, or the machine where that was not recorded.

    A CLIP is pretrained where a study runs, and on processors of two kinds becomes two CLIPs. Of a run on a dataset,
    whose CLIP is the same everywhere, nothing.
    """
    return run.get("clip_weights") or (run.get("machine", "") if "frames" in run else "")


def bases_of(
    missing: Sequence[Run], runs: Sequence[Run], base: str, places: Places, done: Mapping[str, Any]
) -> list[Run]:
    """What is to be done once more: the choice that others are compared with, on the CLIPs that these will be on.

    Args:
        missing: what will be done, whose CLIPs are there.
        runs: of the study.
        base: the name of that choice.
        places: where.
        done: the runs of all records.
    """
    blocks = {(run.level, run.frames, run.seed) for run in missing if run.trains}
    again = []
    for run in runs:
        if run.name != base or run in missing or (run.level, run.frames, run.seed) not in blocks:
            continue
        digest, settings = digest_of(places.clip(run.level, run.clip) / WEIGHTS_NAME), made_of(run, places)
        same_seed = (each for each in runs_of(done, run.level, base, run.frames) if each["seed"] == run.seed)
        if not any(clip_of(each) == digest and _has_settings(each, settings) for each in same_seed):
            again.append(replace(run, on=digest))
    return again


def execute(run: Run, places: Places, here: bool = False) -> dict[str, Any]:
    """Train if there is something to train that is not trained yet, evaluate the last checkpoint.

    Args:
        run: what to do.
        places: where.
        here: in this process.

    Returns:
        What was measured.
    """
    start = time.monotonic()
    toy, folder = places.of(run.level), places.runs / run.key
    settings, note = made_of(run, places), folder / "made_of.json"
    if folder.exists() and (not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != settings):
        shutil.rmtree(folder)  # of other settings
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(settings), encoding="utf-8")
    write_lists(toy / "dataset", folder, places.held_out)
    data = [
        *("--pretrained_clip_name", places.clip(run.level, run.clip), "--packed", toy / "frames"),
        *("--data_path", toy / "dataset" / "MSRVTT_data.json", "--num_thread_reader", "0", "--seed", run.seed),
    ]
    data, shape = [*map(str, data)], ("--max_frames", str(run.frames), "--max_words", str(MAX_WORDS))
    training = folder / "training"
    if run.trains and not (training / RESULTS_FILE).is_file():
        # what a training evaluates after each epoch is not looked at: a few videos will do
        lists = ["--train_csv", folder / "train.csv", "--val_csv", folder / "few.csv", "--output_dir", training]
        call([*data, *map(str, lists), *shape, *run.flags, *places.more], folder / "training.log", here)
    precision = run.flags[run.flags.index("--precision") :][:2]
    trained = ["--do_eval", *precision, "--init_model", str(training / "last.pt")]
    evaluated = {}
    for name in run.evaluated:
        file, flags = EVALUATIONS[name]
        out = folder / ("test" if name == "metrics" else name)
        given = ["--val_csv", folder / file, "--output_dir", out, "--save_features", out / "features"]
        program = trained if run.trains else [*shape, *run.flags]
        call([*data, *program, *flags, *map(str, given)], folder / f"{out.name}.log", here)
        results = read_results(out) if name == "validation" else add_motion_accuracy(out)
        kept = ("t2v", "v2t", "motion", "tokens_", "gaps_", "frame_variation", "trainable")
        evaluated[name] = {key: value for key, value in results.items() if key.startswith(kept)}
    program = training if run.trains else out
    config = json.loads((program / "config.json").read_text(encoding="utf-8"))
    found = {
        "level": run.level,
        "name": run.name,
        "frames": run.frames,
        "seed": run.seed,
        "clip": run.clip,
        "made_of": settings,
        **evaluated,
        "peak_memory_mb": read_results(program)["peak_memory_mb"],
        "video_gigaflops": video_gigaflops(arguments_of(run, places)),
        "clip_weights": digest_of(places.clip(run.level, run.clip) / WEIGHTS_NAME),
        "git_commit": config["git_commit"],
        "machine": config["machine"],
        "minutes": round((time.monotonic() - start) / 60, 2),
    }
    return found | (of_training(training) if run.trains else {})


def digest_of(file: Path) -> str:
    """Of what a file holds: CLIPs that were trained alike on two machines differ in their last digits."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def write_lists(dataset: Path, folder: Path, held_out: int) -> None:
    """The lists of a run.

    ``train.csv`` and ``test.csv`` are the dataset's, the former without its last videos; these make ``validation.csv``
    in the form of ``test.csv``, in sets of as many videos as there are captions, which take turns in the training list.
    ``few.csv`` has the first test videos.
    """
    training = (dataset / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    test = (dataset / "test.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = len(training) - held_out
    for name, rows in (("train", training[:kept]), ("test", test), ("few", test[: 1 + FEW])):
        (folder / f"{name}.csv").write_text("".join(rows), encoding="utf-8")
    if not held_out:
        return
    sentences = json.loads((dataset / "MSRVTT_data.json").read_text(encoding="utf-8"))["sentences"]
    captions = {sentence["video_id"]: sentence["caption"] for sentence in sentences}
    in_a_set = len(set(captions.values()))
    with (folder / "validation.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        several = held_out > in_a_set
        writer.writerow(["key", "vid_key", "video_id", "sentence", *(["set"] if several else [])])
        for place, video in enumerate(row.strip() for row in training[kept:]):
            row = [f"val{place}", f"msr{place}", video, captions[video]]
            writer.writerow([*row, 1 + place // in_a_set] if several else row)


def of_training(folder: Path) -> dict[str, Any]:
    """Seconds a step, and the gate at the start and at the end of a training: means over a tenth of its steps."""
    entries = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [entry for entry in entries if entry["kind"] == "train"]
    tenth = max(1, len(steps) // 10)
    found: dict[str, Any] = {"steps": len(steps), "seconds_per_step": round(seconds_per_step(folder), 4)}
    for name, part in (("start", steps[:tenth]), ("end", steps[-tenth:])):
        if tokens := [step["tokens_per_gap"] for step in part if "tokens_per_gap" in step]:
            found[f"tokens_per_gap_at_the_{name}"] = round(fmean(tokens), 3)
    return found


def seconds_per_step(folder: Path) -> float:
    """The fastest tenth of a training's steps take at most this: what else the machine did then is not in it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    speeds = [event.value for event in events.Scalars("train/samples_per_second")]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config["settings"]["batch_size"] / (quantiles(speeds, n=10)[-1] if len(speeds) > 1 else speeds[0])


def read_record(path: Path) -> dict[str, Any]:
    """The runs that are done, by key; none where there is no record."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_records(paths: Iterable[Path]) -> dict[str, Any]:
    """The runs of several records, see `joined`."""
    return joined(map(read_record, paths))


def joined(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The runs of several records; of those in several the last one's, and beside it those on other CLIPs."""
    together: dict[str, Any] = {}
    for record in records:
        for key, run in record.items():
            former = together.get(key)
            if former is not None and "level" in run and clip_of(former) != clip_of(run):
                together[f"{key} on {clip_of(former)}"] = former
            together[key] = run
    return together


def study(
    places: Places,
    runs: Iterable[Run],
    jobs: int,
    others: Sequence[Path] = (),
    more: Mapping[str, Callable[[Run, Places], Any]] | None = None,
    base: str | None = None,
) -> bool:
    """Do those of the runs that no record holds, or only with other settings, some at a time.

    Args:
        places: where, and what is done.
        runs: of the study.
        jobs: how many at a time; 0 for one after the other in this very process.
        others: records that are read and not written.
        more: what else is measured of each run while its files are there, by the name that it has in the record.
        base: the name of the choice that others are compared with: it is done once more where they are on another CLIP
            than it was, since a study may go on elsewhere.

    Returns:
        Whether all of them could be done.

    Raises:
        BlockingIOError: another study writes to the same folder.
    """
    places.runs.mkdir(parents=True, exist_ok=True)
    runs, more = list(runs), more or {}
    with lock_folder(places.runs):
        done = read_record(places.record)
        elsewhere = read_records(others)
        missing = [
            run for run in runs if not is_done(run, places, done, more) and not is_done(run, places, elsewhere, more)
        ]
        print(plan_of(runs, missing, places, jobs), flush=True)
        for level in dict.fromkeys(run.level for run in missing):
            make_files(level, places)
        for level, clip in dict.fromkeys((run.level, run.clip) for run in missing if run.clip):
            make_clip(level, clip, places)
        if base is not None and (again := bases_of(missing, runs, base, places, joined([elsewhere, done]))):
            print(f"first, on the CLIP that is here: {', '.join(run.key for run in again)}", flush=True)
            missing = again + missing
        failed = 0
        with closing(results_of(missing, places, jobs)) as results:  # whatever ends this, nothing more is begun
            for run, result in results:
                try:
                    found = result() | {name: measured(run, places) for name, measured in more.items()}
                except Exception as error:
                    failed += 1
                    print(f"{run.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                before = done[run.key] if is_alike(run, places, done) else {}
                minutes = before.get("minutes", 0) + found.get("minutes", 0)
                done[run.key] = before | found | {"minutes": round(minutes, 2)}
                write_record(places.record, done)
                print(f"{run.key}: {say(found)}", flush=True)
    return failed == 0


def plan_of(runs: Sequence[Run], missing: Sequence[Run], places: Places, jobs: int) -> str:
    """What is to be done, in words: how many of how many, seed by seed, and about how long it takes."""
    seeds = Counter(run.seed for run in missing)
    trainings = sum(run.trains for run in missing)
    text = f"{len(runs) - len(missing)} of {len(runs)} runs are done ({places.record} and what it shares)"
    if missing:
        text += "; to be done, in this order: " + ", ".join(f"seed {seed}: {n}" for seed, n in seeds.items())
    if trainings and not places.more:
        low, high = (trainings * minutes / 60 / jobs for minutes in MINUTES)
        text += f"; {trainings} trainings, some {low:.1f} to {high:.1f} hours, {jobs} at a time"
    return text


def results_of(runs: Sequence[Run], places: Places, jobs: int) -> Iterator[tuple[Run, Callable[[], dict[str, Any]]]]:
    """Each run, as it is over, with what gives its result or raises what ended it."""
    if jobs == 0:
        for run in runs:
            yield run, partial(execute, run, places, here=True)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(execute, run, places): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result
    finally:
        pool.shutdown(cancel_futures=True)  # whoever presses Ctrl-C has ended the trainings under way


def say(found: Mapping[str, Any]) -> str:
    """What a run has found, in words."""
    names = {"metrics": "", "shuffled": "shuffled ", "validation": "validation "}
    shown = []
    for name, title in names.items():
        if name in found:
            metrics = found[name]
            shown.append(f"{title}R@1 {metrics['t2v_R1']:.1f}")
            if "motion_accuracy" in metrics:
                shown.append(f"motion {metrics['motion_accuracy']:.1f}")
    return ", ".join(shown)


def write_record(path: Path, done: Mapping[str, Any]) -> None:
    """Write the runs that are done."""
    text = json.dumps(dict(sorted(done.items())), indent=1, ensure_ascii=False)
    write_whole(path, lambda file: file.write(f"{text}\n".encode()))


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation, the latter where there are several."""
    if not values:
        return ""
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def differences(
    runs: Iterable[Mapping[str, Any]], bases: Iterable[Mapping[str, Any]], metric: str = "t2v_R1"
) -> list[float]:
    """How much better runs are than those of the same seed, on the same CLIP, that they are compared with.

    Runs that have no such counterpart are left out.
    """
    of_bases = {(run["seed"], clip_of(run)): run["metrics"][metric] for run in bases}
    return [
        run["metrics"][metric] - of_bases[like] for run in runs if (like := (run["seed"], clip_of(run))) in of_bases
    ]


def with_error(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Mean ± standard error of the mean, the latter where there are several.

    sign: ``+`` for differences, which then have theirs in any case.
    """
    if not values:
        return ""
    mean = f"{fmean(values):{sign}.{digits}f}"
    return f"{mean} ± {stdev(values) / len(values) ** 0.5:.{digits}f}" if len(values) > 1 else mean


def trainings_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All runs of a record, without what else it holds."""
    return [run for run in record.values() if "level" in run]


def runs_of(record: Mapping[str, Any], level: str, name: str, frames: int) -> list[dict[str, Any]]:
    """The runs of one row, a seed each."""
    return [run for run in trainings_of(record) if (run["level"], run["name"], run["frames"]) == (level, name, frames)]


@dataclass(frozen=True)
class Action:
    """Something that a study can do beside its runs, by a flag of its own.

    Attributes:
        help: of the flag.
        do: takes the places, the records of other studies, and whether it is to be quick.
    """

    help: str
    do: Callable[[Places, Sequence[Path], bool], None]


def run_study(
    argv: Sequence[str] | None,
    description: str,
    record: Path,
    runs: Sequence[Run],
    quick: Sequence[Run],
    tables: Callable[[dict[str, Any]], str],
    others: Sequence[Path] = (),
    actions: Mapping[str, Action] | None = None,
    more: Mapping[str, Callable[[Run, Places], Any]] | None = None,
    base: str | None = None,
) -> None:
    """The command line of a study: do what is missing, then print its tables.

    Args:
        argv: the command line; None for the program's own.
        description: of the program.
        record: what is done.
        runs: of the study.
        quick: those of ``--quick``, which does them with a step each, elsewhere.
        tables: what is printed, of the runs that are done.
        others: records of other studies, whose runs count as done where they are the same.
        actions: by their flags, each done instead of the runs where it is asked for; ``--quick`` does all of them
            behind its runs.
        more: what else is measured of each run (`study`).
        base: what others are compared with (`study`).
    """
    actions = actions or {}
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="runs whose key (LEVEL/NAME/…) holds this")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each (default: 2)")
    parser.add_argument("--table", action="store_true", help="print the tables of what is done, and stop")
    parser.add_argument("--record", type=Path, default=record, metavar="FILE", help="what is done")
    parser.add_argument("--quick", action="store_true", help="a step of some on a few videos")
    for name, action in actions.items():
        parser.add_argument(f"--{name}", action="store_true", help=action.help)
    args = parser.parse_args(argv)
    if args.table:
        print(tables(read_records([*others, args.record])))
        return
    asked = [action for name, action in actions.items() if getattr(args, name)]
    if args.quick:
        folder = ROOT / "runs" / f"{record.stem}_quick"
        if not asked:
            shutil.rmtree(folder, ignore_errors=True)
        places = quick_places(folder, folder / "record.json" if args.record == record else args.record)
        runs, others = quick, ()
    else:
        places = Places(ROOT / "runs" / "toy", ROOT / "runs" / "study", args.record)
    places.record.parent.mkdir(parents=True, exist_ok=True)
    try:
        for action in asked:
            action.do(places, others, args.quick)
        if asked:
            return
        complete = study(places, [run for run in runs if args.only in run.key], args.jobs, others, more, base)
        for action in actions.values() if args.quick else ():
            action.do(places, others, True)
    except BlockingIOError:
        sys.exit(f"another study writes to {places.runs}: wait for it, or end it")
    print(tables(read_records([*others, places.record])))
    if not complete:
        sys.exit("some runs failed, see above: the same command tries them again")
