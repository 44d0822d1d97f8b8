"""Which video is being read is known while it is, in the process that waits for its workers."""

import contextlib
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dataloaders import reading
from dataloaders.batches import GlobalBatches, evaluation_loader, training_loader
from dataloaders.items import EvaluationDataset, TrainingDataset, VideoSettings, Views
from dataloaders.reading import BeingRead
from dataloaders.samples import Sample


class Slow:
    """A reader that waits until a file is there."""

    def __init__(self, file):
        self.file = file

    def read(self, path, num_frames, sampler):
        while not self.file.exists():
            time.sleep(0.01)
        return np.zeros((num_frames, 8, 8, 3), np.uint8)


SAMPLES = [Sample(f"s{i}", f"video{i}", Path(f"videos/video{i}.mp4"), ("a caption",)) for i in range(3)]
SETTINGS = VideoSettings(2, 8, seed=0)


def in_training(workers):
    dataset = TrainingDataset(SAMPLES, SETTINGS, replace_bad=False)
    batches = GlobalBatches(3, 1, seed=5, rank=0, world_size=1)
    return dataset, training_loader(dataset, batches, workers, pin=False), [index for ((_, index),) in batches]


def in_evaluation(workers):
    dataset = EvaluationDataset(SAMPLES, SETTINGS, views=Views(num_clips=2))
    return dataset, evaluation_loader(dataset, [4, 1], 1, workers, pin=False), [2, 0]


def watch(dataset, loader, enough):
    """What is said to be read while a loader's first video is, a moment later and behind the last.

    The loader is closed with this: a worker that a failing test leaves behind would be waited for.
    """
    dataset.reader = Slow(enough)
    begun = time.monotonic()
    batches = iter(loader)
    while (found := dataset.being_read()) is None and time.monotonic() < begun + 30:
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    time.sleep(0.05)
    later = dataset.being_read()
    enough.touch()
    assert len(list(batches)) == len(loader)
    return found, later, dataset.being_read(), seconds


@pytest.mark.parametrize("make", [in_training, in_evaluation])
def test_the_video_that_a_worker_reads_is_known_until_it_is_read(tmp_path, make):
    dataset, loader, order = make(1)
    assert dataset.being_read() is None
    found, later, behind, seconds = watch(dataset, loader, tmp_path / "enough")
    del loader
    assert found[0] == later[0] == f"videos/video{order[0]}.mp4" and behind is None
    assert 0 <= found[1] <= seconds and later[1] >= found[1] + 0.05


def test_of_several_the_one_that_takes_longest_is_named(monkeypatch):
    being_read = BeingRead()
    with contextlib.ExitStack() as stack:
        for worker, item in ((3, 5), (0, 0), (reading.SLOTS, 7)):  # more workers than there are notes for
            monkeypatch.setattr(reading, "get_worker_info", lambda worker=worker: SimpleNamespace(id=worker))
            stack.enter_context(being_read.note(item))
            assert being_read.longest()[0] == 5
        monkeypatch.setattr(reading, "get_worker_info", lambda: None)
        with pytest.raises(KeyError), being_read.note(9):
            assert being_read.longest()[0] == 5
            raise KeyError
    assert being_read.longest() is None
