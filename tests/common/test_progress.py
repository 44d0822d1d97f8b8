"""What is seen of a long job: bars on a terminal, lines in a file, and the time that is left."""

import io
import sys
from types import SimpleNamespace

import pytest

from common import progress
from common.progress import Progress, duration
from helpers.runs import run
from helpers.tiny import TINY_TRAINING
from modules.training.trainer import TimeLeft
from preprocess import check_videos, compress_video, pack_frames, pretrain_toy_clip
from preprocess.make_toy_dataset import DatasetSettings, make_dataset


class Terminal(io.StringIO):
    """A stream that takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "seconds, words",
    [
        *((0, "0 s"), (0.4, "0 s"), (12, "12 s"), (59.6, "1 min"), (245, "4 min 5 s"), (3600, "1 h")),
        *((4980, "1 h 23 min"), (4999, "1 h 23 min"), (86_399.7, "1 d"), (183_600, "2 d 3 h")),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds, words):
    assert duration(seconds) == words


def count_to(total: int, say, **options) -> None:
    with Progress(total, "counting", "sheep", "sheep", say=say, **options) as counter:
        for number in range(total):
            counter.note(black=number // 2)
            counter.update()


def test_a_file_gets_a_line_now_and_then_and_no_bar(monkeypatch):
    seconds = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    stream, said = io.StringIO(), []
    monkeypatch.setattr(sys, "stderr", stream)
    count_to(10, said.append)  # one every 20 s
    assert stream.getvalue() == ""
    assert said == [
        "counting: 3 of 10 sheep, black 1, 2 min 20 s left",
        "counting: 6 of 10 sheep, black 2, 1 min 20 s left",
        "counting: 9 of 10 sheep, black 4, 20 s left",
    ]
    count_to(10, said.append, shown=False)
    assert stream.getvalue() == "" and len(said) == 3


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    stream, said = Terminal(), []
    monkeypatch.setattr(sys, "stderr", stream)
    count_to(10, said.append)
    assert said == []
    assert "10/10" in stream.getvalue() and "black=4" in stream.getvalue()


def training(folder, flags):
    """A training of three epochs, with its evaluations."""
    assert run(flags, folder / "run", *TINY_TRAINING) == 0


def rendering(folder, flags):
    """A toy dataset."""
    make_dataset(folder / "dataset", DatasetSettings(num_train=2, num_test=2, num_test_sets=1, num_frames=9))


def pretraining(folder, flags):
    """Two steps of a toy CLIP."""
    pretrain_toy_clip.train(pretrain_toy_clip.PretrainSettings(steps=2, batch_size=8))


def checking(folder, flags):
    """All videos of a folder read."""
    videos = flags[flags.index("--features_path") + 1]
    assert check_videos.main(["--features_path", videos, "--output", str(folder / "bad.csv")]) == 0


def compressing(folder, flags):
    """All videos of a folder compressed."""
    videos = flags[flags.index("--features_path") + 1]
    arguments = ["--input_root", videos, "--output_root", str(folder / "small"), "--num_workers", "1"]
    assert compress_video.main(arguments) == 0


def packing(folder, flags):
    """All videos of a folder packed, and the pack checked."""
    videos = flags[flags.index("--features_path") + 1]
    pack = ["--output_root", str(folder / "pack"), "--num_workers", "1"]
    assert pack_frames.main(["--input_root", videos, *pack]) == 0
    assert pack_frames.main(["--verify", *pack]) == 0


@pytest.mark.parametrize("job", [training, rendering, pretraining, checking, compressing, packing])
def test_jobs_leave_no_bars_in_a_file_and_say_how_far_they_are(job, tiny_run, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(progress, "INTERVAL", 0.0)  # a line after each item
    job(tmp_path, tiny_run)
    printed = capfd.readouterr()
    assert "\r" not in printed.err + printed.out
    assert " left" in printed.err and " of " in printed.err


def test_the_time_that_is_left_is_that_of_the_steps_and_evaluations_to_come():
    left = TimeLeft()
    left.add_step(600)  # has compiled
    assert left.say(2, 1) == "20 min left without evaluations"
    for seconds in (1, 3):
        left.add_step(seconds)
    assert left.say(30, 1) == "1 min left without evaluations"
    assert left.say(30, 0) == "1 min left"
    left.add_evaluation(40)
    left.add_evaluation(50)
    assert left.say(30, 2) == "2 min 30 s left"
    assert left.say(0, 0) == "0 s left"
