"""What a run gets wrong on what it was evaluated on, with a frame of each video: the data of `visualize.py errors`."""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import main_task_recognition
import main_task_retrieval
from common.errors import UserError
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from dataloaders.samples import Sample
from dataloaders.video.sampling import FrameSampler
from modules.methods import METHODS
from modules.program.arguments import Arguments, CommonSettings, parse_arguments, video_settings
from modules.program.build import find_in_run
from modules.program.loading import Run, load_run
from modules.report.mistakes import Mistake, Picture
from modules.report.page import in_digits
from modules.runtime.run_folder import BEST, CONFIG
from modules.tasks.embedding import score_pairs
from modules.tasks.metrics import Ranking
from modules.tasks.retrieval import Embeddings
from modules.training.trainer import TrainSettings

RETRIEVED = 5  # videos shown instead of the right one
PREDICTIONS = "predictions.csv"
# what of a run's settings is another one's: what it does, and where it leaves what
NOT_TAKEN = {"do_train", "do_eval", "output_dir", "init_model", "save_features", "method", "datatype"}
PLACES = {"--features_path", "--packed"}  # of the videos: one of the two


@dataclass(frozen=True)
class Query:
    """A caption that was looked for.

    Attributes:
        caption: its text.
        video: the id of its video.
        rank: of that among `among` videos, from 1; in the middle of those as similar.
        similarity: of the two.
        retrieved: ids and similarities of the most similar other videos, the best first.
    """

    caption: str
    video: str
    rank: float
    among: int
    similarity: float
    retrieved: list[tuple[str, float]]


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        UserError: if the folder holds none, or a run for each of several splits.
    """
    path = find_in_run(folder, CONFIG, f"{folder} is not the folder of a run: it holds no {CONFIG}")
    settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
    if settings["datatype"] not in RETRIEVAL | RECOGNITION:
        raise UserError(f"{path}: datatype {settings['datatype']} is none that is known here")
    return settings


def checkpoint_of(folder: Path, settings: dict[str, Any]) -> Path | None:
    """The checkpoint that a run's results are of; None for a method that trains nothing."""
    if (folder / BEST).is_file():
        return folder / BEST
    if settings["init_model"] is not None:
        return Path(settings["init_model"])
    if METHODS[settings["method"]].trains:
        raise UserError(f"{folder} holds no {BEST}: has its training ended its first epoch?")
    return None


def arguments_of(settings: dict[str, Any], checkpoint: Path | None, more: Sequence[str]) -> Arguments:
    """The command line that evaluates a run again, with more flags behind its own."""
    retrieval = settings["datatype"] in RETRIEVAL
    registry = RETRIEVAL if retrieval else RECOGNITION
    of_task = main_task_retrieval.RetrievalSettings if retrieval else main_task_recognition.RecognitionSettings
    classes = [CommonSettings, TrainSettings, of_task, registry[settings["datatype"]].settings]
    of_model = {"max_frames", "max_words"}  # which a checkpoint knows
    if checkpoint is None:
        classes.append(METHODS[settings["method"]].settings)
    given = {flag.split("=")[0] for flag in more}
    flags = ["--do_eval", "--datatype", settings["datatype"], "--method", settings["method"]]
    for field in (field for cls in classes for field in dataclasses.fields(cls)):
        flag, value = f"--{field.name}", settings.get(field.name)
        if field.name in NOT_TAKEN or value is None or value is False or flag in given:
            continue
        if (field.name in of_model and checkpoint is not None) or (flag in PLACES and PLACES & given):
            continue
        flags += [flag] if value is True else [flag, str(value)]
    if checkpoint is not None:
        flags += ["--init_model", str(checkpoint)]
    return parse_arguments([*flags, *more], "", registry, of_task)


def find_mistakes(folder: Path, count: int, more: Sequence[str] = ()) -> tuple[str, list[str], list[Mistake]]:
    """What `modules.report.mistakes.draw_mistakes` draws of a run.

    Args:
        folder: of the run.
        count: how many, the worst first.
        more: flags of its main program, where its files are no longer where they were.

    Raises:
        UserError: if there is nothing that it got wrong, or no such run.
    """
    settings = read_config(folder)
    checkpoint = checkpoint_of(folder, settings)
    arguments = arguments_of(settings, checkpoint, more)
    if settings["datatype"] in RETRIEVAL:
        return _of_retrieval(folder, arguments, checkpoint, count)
    return _of_recognition(folder, arguments, count)


def _of_retrieval(
    folder: Path, arguments: Arguments, checkpoint: Path | None, count: int
) -> tuple[str, list[str], list[Mistake]]:
    samples, worst, total = worst_queries(arguments, checkpoint, count)
    worst = [query for query in worst if query.rank > 1]
    if not worst:
        raise UserError(f"{folder}: every query found its video first; there is nothing wrong to show")
    frames = MiddleFrames(samples, arguments)
    mistakes = []
    for query in worst:
        right = Picture(frames.of(query.video), f"{in_digits(query.similarity)}\n{query.video}", right=True)
        others = [Picture(frames.of(video), f"{in_digits(similar)}\n{video}") for video, similar in query.retrieved]
        mistakes.append(Mistake(f"rank {query.rank:g} of {query.among}\n“{query.caption}”", [right, *others]))
    title = (
        f"{folder}: queries with the worst ranks, {len(worst)} of {total}. Below each video its similarity to "
        "the query and its name."
    )
    return (
        title,
        ["query", "right video", "retrieved instead, the most similar first", *[""] * (RETRIEVED - 1)],
        mistakes,
    )


def _of_recognition(folder: Path, arguments: Arguments, count: int) -> tuple[str, list[str], list[Mistake]]:
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(f"{folder} holds no {PREDICTIONS}: has its evaluation ended?")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = most_confused([(row["label"], row["prediction"]) for row in rows])[:count]
    if not pairs:
        raise UserError(f"{folder}: every video was taken for its own class; there is nothing wrong to show")
    totals = Counter(row["label"] for row in rows)
    frames = MiddleFrames(main_task_recognition.read_data(arguments).split.test, arguments)
    mistakes = []
    for (label, taken_for), times in pairs:
        examples = [row for row in rows if (row["label"], row["prediction"]) == (label, taken_for)][:RETRIEVED]
        pictures = [
            Picture(frames.of(row["video"]), f"{float(row['probability']):.2f}\n{row['video']}") for row in examples
        ]
        share = f"{times} of {totals[label]} videos ({100 * times / totals[label]:.0f}%)"
        mistakes.append(Mistake(f"{label}\ntaken for\n{taken_for}\n{share}", pictures))
    title = (
        f"{folder}: the pairs of classes that are confused most. Below each video the probability of the class that it "
        "was taken for, and its name."
    )
    return title, ["class", "middle frames of videos that were taken for the other", *[""] * (RETRIEVED - 1)], mistakes


def worst_queries(arguments: Arguments, checkpoint: Path | None, count: int) -> tuple[list[Sample], list[Query], int]:
    """The evaluation list of a retrieval run, its queries with the worst ranks, evaluated anew, and how many it has.

    Args:
        arguments: that evaluate it again.
        checkpoint: of the run; None for a method that trains nothing.
        count: how many queries, the worst first; those of one rank as they are listed.

    Raises:
        UserError: if the run cannot be loaded or its files cannot be read.
    """
    data = main_task_retrieval.read_data(arguments)
    common = arguments.common
    if checkpoint is None:
        if arguments.method_settings != METHODS[arguments.method].settings():
            raise UserError(f"--method {arguments.method} can be loaded with its default settings only")
        lengths = {"max_frames": common.max_frames, "max_words": common.max_words}
        source = {"method": arguments.method, **lengths}
    else:
        source = {"source": checkpoint}
    places = {"clip": common.pretrained_clip_name, "pretrained_dir": common.pretrained_dir}
    run = load_run(**source, **places, precision=arguments.train.precision, trust_weights=common.trust_weights)
    task = main_task_retrieval.build_task(arguments, data, run.clip.image_size)
    ranked = task.rank(run.model, task.embed(run.model, run.compute), run.compute, task.v2t_ranks)
    queries = [(part, found["t2v"], row) for part, found in ranked for row in range(len(part.captions))]
    worst = sorted(queries, key=lambda query: -query[1].ranks[query[2]])[:count]
    found = [query_of(part, ranking, row, similarities(run, part, row)) for part, ranking, row in worst]
    return data.evaluation, found, len(queries)


def similarities(run: Run, part: Embeddings, row: int) -> np.ndarray:
    """(M,), of a caption to the videos that it is ranked among."""
    if run.model.head.is_product:
        return part.video @ part.text[row]
    return score_pairs(run.model, part.text[row : row + 1], part.video, run.compute)[0]


def query_of(part: Embeddings, ranking: Ranking, row: int, similarity: np.ndarray) -> Query:
    """What a caption found.

    Args:
        part: what it is ranked in.
        ranking: of the captions there, which decides what was found first.
        row: which of these it is.
        similarity: (M,), to the videos there.
    """
    right, first = int(ranking.right[row]), int(ranking.first[row])
    order = dict.fromkeys([first, *np.argsort(-similarity, kind="stable").tolist()])
    retrieved = [(part.video_ids[at], float(similarity[at])) for at in order if at != right][:RETRIEVED]
    return Query(
        part.captions[row],
        part.video_ids[right],
        float(ranking.ranks[row]),
        len(part.video_ids),
        float(ranking.right_similarity[row]),
        retrieved,
    )


def most_confused(pairs: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    """Pairs of a class and another that its videos were taken for, and how often; the most frequent first."""
    return Counter(pair for pair in pairs if pair[0] != pair[1]).most_common()


class MiddleFrames:
    """The middle frame of each video of a list, whole and upright."""

    def __init__(self, samples: Sequence[Sample], arguments: Arguments):
        """samples: of the list. arguments: how its videos are read."""
        self.paths = {sample.video_id: sample.path for sample in samples}
        self.reader = video_settings(arguments, image_size=0).make_reader()

    def of(self, video: str) -> np.ndarray:
        """(H, W, 3) uint8.

        Raises:
            BadVideoError: if it cannot be read.
        """
        return self.reader.read(self.paths[video], 1, FrameSampler())[0]
