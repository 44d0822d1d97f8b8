"""Some videos of what a run was evaluated on, as its model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

import main_task_recognition
import main_task_retrieval
from dataloaders.datasets import RETRIEVAL
from dataloaders.items import EvaluationDataset
from dataloaders.samples import Sample
from modules.program.arguments import video_settings
from modules.program.loading import Run
from modules.report.page import evenly
from scripts.figures.mistakes import arguments_of, checkpoint_of, read_config


@dataclass(frozen=True)
class Shown:
    """A test video.

    Attributes:
        name: its id. text: its first caption, or the text of its class.
        frames: (T, 3, S, S) uint8. num_frames: how many of them are real.
    """

    name: str
    text: str
    frames: Tensor
    num_frames: int


def test_videos(folder: Path, run: Run, count: int, more: Sequence[str] = ()) -> list[Shown]:
    """Videos evenly spaced in a run's evaluation list, first and last among them.

    Args:
        folder: of the run.
        run: its model.
        count: how many.
        more: flags of its main program, where its files are no longer where they were.

    Raises:
        UserError: if its files cannot be read.
        BadVideoError: if one of the videos cannot be.
    """
    settings = read_config(folder)
    arguments = arguments_of(settings, checkpoint_of(folder, settings), more)
    if settings["datatype"] in RETRIEVAL:
        samples, template = main_task_retrieval.read_data(arguments).evaluation, "{class}"
    else:
        data = main_task_recognition.read_data(arguments)
        samples, template = data.split.test, data.templates[0]
    firsts: dict[str, Sample] = {}
    for sample in samples:
        firsts.setdefault(sample.video_id, sample)
    chosen = [list(firsts.values())[row] for row in evenly(len(firsts), count)]
    video = video_settings(arguments, run.clip.image_size)
    dataset = EvaluationDataset(chosen, replace(video, num_frames=run.max_frames))
    try:
        items = [dataset.read(row) for row in range(len(chosen))]
    finally:
        dataset.reader.close()
    return [
        Shown(sample.video_id, template.replace("{class}", sample.captions[0]), item.frames, item.num_frames)
        for sample, item in zip(chosen, items, strict=True)
    ]
