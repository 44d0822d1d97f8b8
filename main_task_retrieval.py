"""Text–video retrieval: train and evaluate STOP and the methods it is compared with.

On the CPU or one GPU:
  .venv/bin/python main_task_retrieval.py --do_train --train_csv MSRVTT_train.9k.csv \\
      --val_csv MSRVTT_JSFUSION_test.csv --data_path MSRVTT_data.json --features_path videos \\
      --expand_msrvtt_sentences --output_dir runs/msrvtt
On four GPUs of one machine (--batch_size is the global batch: the same computation, up to rounding):
  .venv/bin/python -m modules.runtime.launch --processes 4 main_task_retrieval.py --do_train …
On two machines of four GPUs, the same line on both:
  .venv/bin/torchrun --nnodes=2 --nproc_per_node=4 --rdzv_backend=c10d --rdzv_endpoint=HOST:29500 \\
      main_task_retrieval.py …
The same command again continues an interrupted run. Evaluation of a checkpoint, and of the frozen CLIP:
  .venv/bin/python main_task_retrieval.py --do_eval --init_model runs/msrvtt/best.pt --save_features features …
  .venv/bin/python main_task_retrieval.py --do_eval --method zero_shot …

`--method` and `--datatype` decide which further flags there are; --help shows those of the ones chosen.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.early import leave_quietly_on_ctrl_c, say_starting
from dataloaders.datasets import RETRIEVAL

if __name__ == "__main__":  # here, since what follows takes seconds
    say_starting()
    leave_quietly_on_ctrl_c()

from common.settings import setting
from dataloaders.annotations import read_all
from dataloaders.batches import check_num_samples
from dataloaders.items import EvaluationDataset, TrainingDataset
from dataloaders.missing_videos import MayBeMissing
from dataloaders.samples import Sample, check_overlap
from modules.program.arguments import Arguments, parse_arguments, video_settings
from modules.program.experiment import open_run
from modules.program.launch import Session, run_program
from modules.tasks.metrics import V2T_RANKS
from modules.tasks.retrieval import RetrievalTask

logger = logging.getLogger("stop")


@dataclass(frozen=True)
class RetrievalSettings:
    """Flags of retrieval."""

    mask_same_video: bool = setting(False, "pairs of one video, and equal captions, are no negatives [ours]")
    # in a run's identity by the task, where it matters
    v2t_ranks: str = setting(
        "videos",
        "of videos with several captions, video-to-text ranks are among videos, by the best caption of each, as "
        "CLIP4Clip's, or among captions: the same R@1, other R@5, R@10 and ranks",
        V2T_RANKS,
        affects_results=False,
        former="captions",
    )
    save_features: Path | None = setting(
        None, "write the evaluation set's embeddings to this folder", affects_results=False, metavar="FOLDER"
    )


@dataclass(frozen=True)
class RetrievalData:
    """What the files of a run hold.

    Attributes:
        training: None for an evaluation alone.
        evaluation: text–video pairs.
        missing: (list, video id) of the videos that are left out because they have no file.
    """

    training: list[Sample] | None
    evaluation: list[Sample]
    missing: list[tuple[str, str]]


def read_data(arguments: Arguments) -> RetrievalData:
    """Read what the flags name.

    Raises:
        AnnotationError: listing everything that is wrong with the annotation files of both lists; also if official
            splits share videos, which otherwise is a warning.
        UserError: if there are too few training samples for a batch, or no such list of missing videos.
    """
    common, dataset = arguments.common, RETRIEVAL[arguments.datatype]
    may_be_missing = MayBeMissing(common.allow_missing, common.on_bad_eval_video == "drop")
    readers = {"evaluation": partial(dataset.read_eval, allow_missing=may_be_missing.evaluation)}
    if common.do_train:
        readers = {"training": partial(dataset.read_train, allow_missing=may_be_missing.training)} | readers
    lists = dict(zip(readers, read_all(list(readers.values()), arguments.data), strict=True))
    missing = [(name, video) for name in lists for video in lists[name].missing]
    may_be_missing.check(missing)
    training = lists["training"].samples if "training" in lists else None
    evaluation = lists["evaluation"].samples
    if training is not None:
        check_num_samples(len(training), arguments.train.batch_size)
        official = dataset.official(arguments.data)
        if warning := check_overlap(training, evaluation, official, f"--datatype {arguments.datatype}"):
            logger.warning("%s", warning)
    return RetrievalData(training, evaluation, missing)


def build_task(arguments: Arguments, data: RetrievalData, image_size: int) -> RetrievalTask:
    """The task on that data."""
    common, train = arguments.common, arguments.train
    video = video_settings(arguments, image_size)
    drop_bad = common.on_bad_eval_video == "drop"
    training_set = None
    if data.training is not None:
        training_set = TrainingDataset(data.training, video, train.on_bad_video == "skip")
    return RetrievalTask(
        training_set,
        EvaluationDataset(data.evaluation, video, common.eval_frame_order, drop_bad=drop_bad),
        arguments.task.mask_same_video,
        common.batch_size_val,
        train.num_thread_reader,
        arguments.task.save_features,
        data.missing,
        arguments.task.v2t_ranks,
    )


def run(arguments: Arguments, session: Session) -> None:
    """Train or evaluate, as the flags say."""
    with open_run(arguments, session) as run:
        data = read_data(arguments)  # all that is wrong with the files, before anything slow
        clip = run.load_clip()
        task = build_task(arguments, data, clip.image_size)
        run.identify(clip, task)  # before a method changes CLIP
        model = run.build_model(clip, task)
        if run.trains:
            run.train(model, task)
        run.write_results(model, task)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    return run_program(lambda: parse_arguments(argv, __doc__, RETRIEVAL, RetrievalSettings), run)


if __name__ == "__main__":
    sys.exit(main())
