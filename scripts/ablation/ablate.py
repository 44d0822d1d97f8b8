"""STOP with and without its halves, and accuracy over N_s, α, β, η and merged frames: the paper's Table 4 and Figure 4.

  bash scripts/ablate.sh toy                                # on the toy testbed, both levels; see --help behind it
  bash scripts/ablate.sh toy --time                         # measures the seconds of a step of each point, in turns
  bash scripts/ablate.sh toy --picture                      # draws docs/pictures/ablation_toy.png of what is done
  bash scripts/ablate.sh scripts/msrvtt.sh                  # on a dataset, with its script
  bash scripts/ablate.sh scripts/hmdb51.sh --seeds 1 2 --alpha 0 0.5 1 --eta --output_dir runs/ablated -- --split 1

Every point of a dataset is the script with STOP's flags behind it, in a folder of its own, one after the other; what
stands behind ``--`` goes to the script as it is. The same command again goes on where it stopped. Reported is the last
epoch, so that nothing is chosen on a test set. `ablation.json`, `ablation.md` and `ablation.png` in the folder hold
what is done, and are written anew after each training.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.errors import UserError
from common.files import lock_folder, write_whole
from modules.runtime.run_folder import RESULTS as RESULTS_FILE
from modules.runtime.run_folder import describe_machine, git_commit
from scripts.ablation.sweeps import (
    ACCURACIES,
    DEFAULTS,
    MERGE,
    NOTHING,
    PROMPTS,
    SWEEPS,
    Point,
    distinct,
    make_points,
    table,
)
from scripts.demo_table import read_results
from scripts.studies import choices, merging, patches
from scripts.studies.costs import measure_costs
from scripts.studies.runner import (
    BUDGET,
    FRAMES,
    LEVELS,
    RESULTS,
    ROOT,
    STEP,
    STOP,
    Action,
    Places,
    Run,
    joined,
    read_record,
    read_records,
    run_study,
    seconds_per_step,
    write_record,
)

RECORD = RESULTS / "ablation_toy.json"
OTHERS = (choices.RECORD, merging.RECORD, patches.RECORD)  # studies that it shares runs with
PICTURE = ROOT / "docs" / "pictures" / "ablation_toy.png"
SEEDS = (1, 2, 3)
QUICK = {"zero-shot", DEFAULTS, "intra alone", "merged 2"}
SIZE, QUICK_SIZE = (36, 9), (2, 1)  # of the timing: videos of a step, and rounds
MEASURED = (*ACCURACIES, "t2v_R5", "v2t_R1", "top5")
FP32 = ("--precision", "fp32")
# of the toy CLIP: 49 patches a frame, four layers
TOY_LISTS = {
    "num_regions": ("2", "6", "12", "24"),
    "alpha": ("0", "0.25", "0.5", "0.75", "1"),
    "beta": ("0", "1", "4"),
    "eta": ("1", "2", "4", "8"),
    MERGE: (NOTHING, "2", "1,2", "1,2,3"),
}
TOY = make_points(TOY_LISTS, ("--method", "zero_shot"), none_name="zero-shot")  # shared with the other studies
# of ViT-B/32, where none are given
LISTS = {
    "num_regions": ("2", "4", "6", "8", "12"),
    "alpha": ("0", "0.25", "0.5", "0.75", "1"),
    "beta": ("0", "0.5", "1", "2"),
    "eta": ("1", "2", "4", "6", "8"),
    MERGE: (NOTHING, "8", "4,8", "2,4,8"),
}
# what else trains in a script's STOP, which then is there without prompts as well
BESIDE_PROMPTS = ("--text_prompts", "--side_adapters", "--time_embedding")


@dataclass(frozen=True)
class Ablation:
    """Of a dataset.

    Attributes:
        script: that trains on it.
        points, seeds: what is trained.
        folder: of the runs.
        more: flags for the script.
    """

    script: Path
    points: Sequence[Point]
    seeds: Sequence[int]
    folder: Path
    more: Sequence[str]

    @property
    def name(self) -> str:
        """What the dataset is called in tables."""
        return self.script.stem

    def run(self, point: Point, seed: int) -> tuple[str, list[str]]:
        """The key of a run in the record, and its command."""
        key = f"{point.name.replace(', ', '_').replace(' ', '_')}/seed{seed}"
        output = ["--output_dir", str(self.folder / key)]
        return key, ["bash", str(self.script), *self.more, *point.flags, "--seed", str(seed), *output]


def toy_runs() -> list[Run]:
    """Every run of the toy testbed: all of a level and seed before the next; what does not train once."""
    runs = []
    for seed in SEEDS:
        for level in LEVELS:
            for point in distinct(TOY):
                trains = point.sweep != PROMPTS or point.value != "none"
                if not trains and seed != SEEDS[0]:
                    continue
                flags = ("--do_train", *STOP, *BUDGET, *FP32) if trains else ("--do_eval",)
                more = point.flags if trains else (*point.flags, *FP32)
                runs.append(Run(level, point.name, FRAMES, seed, (*flags, *more)))
    return runs


def toy_tables(record: dict[str, Any]) -> str:
    """What docs/method.md has of the toy testbed."""
    return table(record, LEVELS, TOY)


def toy_tables_of(own: dict[str, Any], *others: dict[str, Any] | None) -> str:
    """The same, of this study's record and those that it shares runs with."""
    return toy_tables(joined([*(record or {} for record in others), own]))


def time_toy(places: Places, others: Sequence[Path], quick: bool) -> None:
    """Measure what a training step of each point takes, and write it to the record.

    Raises:
        BlockingIOError: a study runs, which would slow this down and write to the same record.
    """
    runs = {run.name: run for run in toy_runs() if run.trains and (run.level, run.seed) == (LEVELS[0], SEEDS[0])}
    runs, size = ({name: runs[name] for name in QUICK & runs.keys()}, QUICK_SIZE) if quick else (runs, SIZE)
    places.runs.mkdir(parents=True, exist_ok=True)
    with lock_folder(places.runs):
        costs = measure_costs(runs, DEFAULTS, *size)
        write_record(places.record, read_record(places.record) | {STEP: costs})
    print("s a step: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in costs["seconds"].items()))


def draw_toy(places: Places, others: Sequence[Path], quick: bool) -> None:
    """Draw what is done."""
    path = PICTURE if places.record == RECORD else places.record.parent / PICTURE.name
    write_picture(path, read_records([*others, places.record]), LEVELS, TOY)
    print(f"wrote {path}")


def write_picture(path: Path, record: Mapping[str, Any], levels: Sequence[str], points: Sequence[Point]) -> None:
    """Draw a record into a PNG file; ends the program where there is nothing to draw."""
    from scripts.ablation.picture import picture  # matplotlib is slow to import, and needed here only

    try:
        content = picture(record, levels, points)
    except UserError as error:
        sys.exit(str(error))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def ablate(ablation: Ablation) -> bool:
    """Run what is not done yet, one after the other, and leave the record, the tables and the picture.

    Returns:
        Whether all of it could be done.

    Raises:
        BlockingIOError: another ablation writes to the same folder.
    """
    ablation.folder.mkdir(parents=True, exist_ok=True)
    complete = True
    with lock_folder(ablation.folder):
        runs = [
            (point, seed, *ablation.run(point, seed)) for seed in ablation.seeds for point in distinct(ablation.points)
        ]
        done = read_record(ablation.folder / "ablation.json")
        missing = [run for run in runs if done.get(run[2], {}).get("made_of") != run[3]]
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are done ({ablation.folder})", flush=True)
        for point, seed, key, command in missing:
            print(f"{key}: {' '.join(command)}", flush=True)
            if status := subprocess.run(command, cwd=ROOT).returncode:
                complete = False
                print(f"{key}: ended with {status}, see above", file=sys.stderr, flush=True)
                continue
            found = {"level": ablation.name, "name": point.name, "seed": seed, "made_of": command}
            try:
                done[key] = found | measured(ablation.folder / key)
            except (UserError, OSError, ValueError) as error:
                complete = False
                print(f"{key}: {error}", file=sys.stderr, flush=True)
                continue
            write_record(ablation.folder / "ablation.json", done)
            write_tables(ablation, done)
    print(table(done, [ablation.name], ablation.points))
    return complete


def measured(folder: Path) -> dict[str, Any]:
    """What a run found in its last epoch, the seconds of a step if it trained, the commit and the machine.

    Of a run of several splits these are means over the splits.

    Raises:
        UserError: if it has no accuracy.
    """
    splits = read_results(folder).get("splits")
    parts = [folder] if splits is None else [folder / f"split{name}" for name in splits]
    found = [results | (results.get("last_epoch") or {}) for results in map(read_results, parts)]
    names = [name for name in MEASURED if all(name in results for results in found)]
    if not set(names) & ACCURACIES.keys():
        raise UserError(f"{folder / RESULTS_FILE} has none of {', '.join(ACCURACIES)}")
    metrics = {name: fmean(results[name] for results in found) for name in names}
    timed = [seconds_per_step(part) for part in parts if (part / "tensorboard").is_dir()]
    seconds = {"seconds_per_step": round(fmean(timed), 4)} if timed else {}
    return {"metrics": metrics, **seconds, "git_commit": git_commit(), "machine": describe_machine()}


def write_tables(ablation: Ablation, record: Mapping[str, Any]) -> None:
    """Write the tables and the picture of a dataset."""
    text = table(record, [ablation.name], ablation.points) + "\n"
    write_whole(ablation.folder / "ablation.md", lambda file: file.write(text.encode()))
    write_picture(ablation.folder / "ablation.png", record, [ablation.name], ablation.points)


def trains_beside_prompts(script: str, more: Sequence[str]) -> bool:
    """Whether a script's STOP has something that trains without prompts.

    Args:
        script: its text, whose comments do not count.
        more: flags behind it. Of each flag the last value counts, and 0 is for nothing.
    """
    commands = re.sub(r"(^|\s)#.*", "", script, flags=re.MULTILINE).replace("\\\n", " ")
    given = " ".join([commands, *more])
    values = dict(re.findall(rf"({'|'.join(BESIDE_PROMPTS)})(?:[ =]+[\"']?([^\s\"'()-]+))?", given))
    return any(value != "0" for value in values.values())


def parse(argv: Sequence[str]) -> Ablation:
    """The command line of a dataset's ablation."""
    argv, more = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="SCRIPT", help="toy, or the script that trains on a dataset")
    for name, values in LISTS.items():
        help = f"values of {SWEEPS[name][1]} (default: {' '.join(values)}); none for no such sweep"
        parser.add_argument(f"--{name}", nargs="*", default=values, metavar="VALUE", help=help)
    help = "flags of a model without prompts (default: --ablate both where the script or you give "
    help += f"{', '.join(BESIDE_PROMPTS)}, else --method zero_shot)"
    parser.add_argument("--none", metavar="FLAGS", help=help)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, metavar="SEED", help="(default: 1 2 3)")
    parser.add_argument("--output_dir", type=Path, metavar="FOLDER", help="(default: runs/ablate/NAME OF THE SCRIPT)")
    args = parser.parse_args(argv)
    script = Path(args.what)
    if not (ROOT / script).is_file():
        parser.error(f"there is no script {script}: give toy, or one such as scripts/msrvtt.sh")
    lists = {name: getattr(args, name) for name in LISTS}
    for name in LISTS.keys() - {MERGE}:
        try:
            list(map(float, lists[name]))
        except ValueError as error:
            parser.error(f"--{name}: {error}")
    # from where the script is run, which is the repository
    folder = (ROOT / (args.output_dir or Path("runs") / "ablate" / script.stem)).resolve()
    trains = trains_beside_prompts((ROOT / script).read_text(encoding="utf-8"), more)
    none = ("--ablate both" if trains else "--method zero_shot") if args.none is None else args.none
    return Ablation(script, make_points(lists, none.split()), args.seeds, folder, more)


def main(argv: Sequence[str] | None = None) -> None:
    """Run, then print the tables."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["toy"]:
        runs = toy_runs()
        quick = [run for run in runs if (run.level, run.seed) == (LEVELS[0], SEEDS[0]) and run.name in QUICK]
        actions = {
            "time": Action("measure the seconds of a step of each point, in turns, and stop", time_toy),
            "picture": Action("draw the picture of what is done, and stop", draw_toy),
        }
        run_study(argv[1:], __doc__, RECORD, runs, quick, toy_tables, OTHERS, actions, base=DEFAULTS)
        return
    ablation = parse(argv)
    try:
        complete = ablate(ablation)
    except BlockingIOError:
        sys.exit(f"another ablation writes to {ablation.folder}: wait for it, or end it")
    if not complete:
        sys.exit("some runs failed, see above: the same command tries them again")


if __name__ == "__main__":
    main()
