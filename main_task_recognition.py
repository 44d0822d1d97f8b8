"""Action recognition: train and evaluate STOP and the methods it is compared with, on HMDB51, UCF101, SSv2, Kinetics.

On the CPU or one GPU:
  .venv/bin/python main_task_recognition.py --do_train --datatype hmdb51 --split_dir testTrainMulti_7030_splits \\
      --features_path videos --batch_size 32 --output_dir runs/hmdb51
The three splits of HMDB51 or UCF101 and their mean:
  .venv/bin/python main_task_recognition.py --do_train --split mean …
On several GPUs, with --batch_size the global batch: modules.runtime.launch or torchrun as in main_task_retrieval.py.
Zero-shot, a checkpoint, and few-shot with 16 training videos a class:
  .venv/bin/python main_task_recognition.py --do_eval --method zero_shot …
  .venv/bin/python main_task_recognition.py --do_eval --init_model runs/hmdb51/best.pt --num_clips 4 --num_crops 3 …
  .venv/bin/python main_task_recognition.py --do_train --shots 16 …

`--method` and `--datatype` decide which further flags there are; --help shows those of the ones chosen.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from common.early import leave_quietly_on_ctrl_c, say_starting

if __name__ == "__main__":  # here, since what follows takes seconds
    say_starting()
    leave_quietly_on_ctrl_c()

import numpy as np

from common.errors import UserError
from common.files import csv_text
from common.seeds import derive_seed
from common.settings import at_least, setting
from dataloaders.annotations import read_all
from dataloaders.batches import check_num_samples
from dataloaders.datasets import RECOGNITION
from dataloaders.datasets.recognition.splits import LISTS, RecognitionSplit
from dataloaders.items import EvaluationDataset, TrainingDataset, Views
from dataloaders.missing_videos import MayBeMissing
from dataloaders.samples import Sample
from dataloaders.video.preparation import combine
from modules.model.measures import WORDS, explain
from modules.program.arguments import Arguments, parse_arguments, video_settings
from modules.program.experiment import mark_when_interrupted, open_run
from modules.program.launch import Session, run_program
from modules.runtime.processes import Processes
from modules.runtime.run_folder import BEST, INTERRUPTED, RESULTS, RunFolder
from modules.tasks.metrics import rounded
from modules.tasks.recognition import LEGEND, RecognitionTask, read_templates
from modules.tasks.thinned import join_thinned, say_thinned

logger = logging.getLogger("stop")

MEAN = "mean"
METRICS = ("top1", "top5", "mean_class")


@dataclass(frozen=True)
class RecognitionSettings:
    """Flags of recognition."""

    split: str = setting(
        "1", "official split; mean runs all three and reports each and their mean", ("1", "2", "3", MEAN)
    )
    class_prompt: str = setting(
        "a video of a person {class}.",
        "template of a class's text, or a file of templates whose texts are averaged",
        affects_results=False,
        metavar="TEMPLATE_OR_FILE",
    )
    shots: int = setting(0, "training videos drawn for each class; 0 for all", within=at_least(0), metavar="VIDEOS")
    horizontal_flip: bool = setting(
        False, "mirror half of the training videos; not where left and right are in the label"
    )
    num_clips: int = setting(1, "test-time views in time", within=at_least(1), metavar="VIEWS")
    num_crops: int = setting(1, "test-time views in space: 1 is the centre, 3 also both ends of the long side", (1, 3))
    save_features: Path | None = setting(
        None,
        "write the embeddings of the test videos and the classes to this folder",
        affects_results=False,
        metavar="FOLDER",
    )


@dataclass(frozen=True)
class RecognitionData:
    """What the files of a run hold: the split, its training videos drawn if they are to be few, and class prompts."""

    split: RecognitionSplit
    templates: list[str]


def read_data(arguments: Arguments) -> RecognitionData:
    """Read what the flags name.

    Raises:
        UserError: if the flags do not fit the dataset or each other; as AnnotationError, listing everything that is
            wrong with its files.
    """
    dataset, task = RECOGNITION[arguments.datatype], arguments.task
    if task.split not in dataset.splits:
        raise UserError(f"--split {task.split}: {arguments.datatype} has split {', '.join(dataset.splits)} only")
    templates = read_templates(task.class_prompt)
    if task.horizontal_flip and dataset.left_right_matters:
        raise UserError(f"--horizontal_flip: left and right are part of the labels of {arguments.datatype}")
    common = arguments.common
    may_be_missing = MayBeMissing(common.allow_missing, common.on_bad_eval_video == "drop")
    allowed = {"training": may_be_missing.training, "test": may_be_missing.evaluation}
    lists = LISTS if common.do_train else ["test"]  # nothing is trained on in an evaluation
    split = dataset.read(arguments.data, task.split, [name for name in allowed if allowed[name]], lists)
    may_be_missing.check(split.missing)
    sided = [text for text in split.texts if {"left", "right"} & set(text.split())]
    if task.horizontal_flip and sided:
        raise UserError(f"--horizontal_flip: left and right are part of the class {sided[0]!r}")
    if task.shots and common.do_train:
        split = replace(split, train=draw_shots(split, task.shots, arguments.train.seed))
    if common.do_train:
        check_num_samples(len(split.train), arguments.train.batch_size)
    return RecognitionData(split, templates)


def draw_shots(split: RecognitionSplit, shots: int, seed: int) -> list[Sample]:
    """`shots` training videos of each class, a function of the seed and the class alone, in the split's order.

    Raises:
        UserError: naming the classes that have fewer.
    """
    by_class: dict[int, list[Sample]] = {label: [] for label in range(len(split.classes))}
    for sample in split.train:
        by_class[sample.label].append(sample)
    if few := [split.classes[label] for label, samples in by_class.items() if len(samples) < shots]:
        raise UserError(f"--shots {shots}: {len(few)} classes have fewer training videos: {', '.join(few[:10])}")
    chosen = set()
    for label, samples in by_class.items():
        draw = np.random.default_rng(derive_seed(seed, "shots", split.classes[label]))
        chosen |= {samples[i].sample_id for i in draw.choice(len(samples), shots, replace=False)}
    return [sample for sample in split.train if sample.sample_id in chosen]


def build_task(arguments: Arguments, data: RecognitionData, image_size: int) -> RecognitionTask:
    """The task on a split."""
    common, train, task, split = arguments.common, arguments.train, arguments.task, data.split
    video = video_settings(arguments, image_size, task.horizontal_flip)
    views, drop_bad = Views(task.num_clips, task.num_crops), common.on_bad_eval_video == "drop"
    training_set, files = None, {}
    if common.do_train:
        training_set = TrainingDataset(split.train, video, replace_bad=train.on_bad_video == "skip")
        if task.shots:
            rows = [[sample.video_id, split.classes[sample.label]] for sample in split.train]
            files["shots.csv"] = csv_text([["video", "class"], *rows])
    return RecognitionTask(
        training_set,
        EvaluationDataset(split.test, video, common.eval_frame_order, views, drop_bad),
        split.classes,
        split.texts,
        data.templates,
        common.batch_size_val,
        train.num_thread_reader,
        task.save_features,
        files,
        [(name, video) for name, video in split.missing if common.do_train or name == "test"],
    )


def run_split(arguments: Arguments, session: Session, data: RecognitionData | None = None) -> dict[str, Any]:
    """Train or evaluate on one split, as the flags say; what its ``results.json`` holds.

    Args:
        arguments: the command line.
        session: what it runs in.
        data: what its files hold, where they were read before.
    """
    with open_run(arguments, session) as run:
        data = data or read_data(arguments)  # all that is wrong with the files, before anything slow
        clip = run.load_clip()
        task = build_task(arguments, data, clip.image_size)
        run.identify(clip, task)  # before a method changes CLIP
        model = run.build_model(clip, task)
        if run.trains:
            run.train(model, task)
        return run.write_results(model, task)


def run(arguments: Arguments, session: Session) -> None:
    """Run one split, or each of them in a folder of its own and write their mean."""
    if arguments.task.split != MEAN:
        run_split(arguments, session)
        return
    whole = RunFolder(arguments.common.output_dir, session.processes.is_main)
    whole.start_logging()
    splits = RECOGNITION[arguments.datatype].splits
    if len(splits) < 2:
        raise UserError(f"--split mean: {arguments.datatype} has one split only")
    parts = [of_split(arguments, name) for name in splits]
    # all of them before the first trains: what is wrong with the third should not be found a day later
    data = read_all([lambda _, part=part: read_data(part) for part in parts], None)
    whole.remove(INTERRUPTED)
    with mark_when_interrupted(whole, session):
        results = [run_split(part, session, held) for part, held in zip(parts, data, strict=True)]
    write_mean(arguments, dict(zip(splits, results, strict=True)), session.processes)


def write_mean(arguments: Arguments, results: Mapping[str, Mapping[str, Any]], processes: Processes) -> None:
    """``results.json`` of all splits: the mean of the metrics, and what each split gave."""
    folder = RunFolder(arguments.common.output_dir, processes.is_main)
    folder.start_logging()
    folder.suffix = "_eval" if not arguments.common.do_train and folder.has(RESULTS) else ""
    first = next(iter(results.values()))
    # what is measured depends on the method; a split whose videos have one frame lacks what is of gaps
    names = [*METRICS, *(name for name in WORDS if all(name in result for result in results.values()))]
    means = rounded({name: fmean(result[name] for result in results.values()) for name in names})
    summary = {
        **{name: first[name] for name in ("dataset", "method")},
        **means,
        **{name: first[name] for name in ("trainable_parameters", "clip", "max_frames", "max_words", "precision")},
        "prepared": {
            name: combine([result["prepared"][name] for result in results.values()]) for name in first["prepared"]
        },
        "texts": first["texts"],
        "videos": sum(result["videos"] for result in results.values()),
        **join_thinned(list(results.values())),
        "seconds": round(sum(result["seconds"] for result in results.values()), 1),
        "peak_memory_mb": max(result["peak_memory_mb"] for result in results.values()),
        "splits": results,
    }
    folder.write_json(RESULTS, summary)
    shown = " ".join(f"{name} {value:.2f}" for name, value in means.items())
    logger.info("%s", explain(LEGEND, means))
    mark = say_thinned(summary)
    logger.info("mean over splits %s: %s%s", ", ".join(results), shown, f" ({mark})" if mark else "")


def of_split(arguments: Arguments, name: str) -> Arguments:
    """The same command line for one split, in a folder of its own.

    Raises:
        UserError: if ``--init_model`` is not the folder of such a run.
    """
    common, task = arguments.common, arguments.task
    init_model = common.init_model
    if init_model is not None:
        init_model = init_model / f"split{name}" / BEST
        if not init_model.is_file():
            raise UserError(f"--split mean takes the folder of a --split mean run as --init_model: no {init_model}")
    features = None if task.save_features is None else task.save_features / f"split{name}"
    return replace(
        arguments,
        common=replace(common, output_dir=common.output_dir / f"split{name}", init_model=init_model),
        task=replace(task, split=name, save_features=features),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    return run_program(lambda: parse_arguments(argv, __doc__, RECOGNITION, RecognitionSettings), run)


if __name__ == "__main__":
    sys.exit(main())
