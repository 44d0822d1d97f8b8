"""One, two and four processes give one result; one that fails ends all of them."""

import functools
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import torch

from helpers.faults import LIBRARY, failing, in_program, spoil
from helpers.flags import path_of, train_ids, with_value
from helpers.launching import launch, torchrun
from helpers.paths import ROOT
from helpers.runs import checkpoint, lines, results
from helpers.tiny import TINY_TRAINING
from modules.model.measures import WORDS

# 22 samples, of which neither 2 nor 4 processes take an equal share, in batches of 4: 5 steps an epoch
SHARED = [*TINY_TRAINING, "--batch_size", "4", "--epochs", "4", "--mask_same_video", "--on_bad_video", "error"]


PRECISIONS = ("fp32", "fp64")
# Trainings one after the other in the same processes, which take longer to start than to train. A group looks in the
# launcher's store for the addresses of its own processes, not of the group before it.
TRAININGS = """
import json, sys
from torch.distributed import PrefixStore
import main_task_retrieval
from modules.runtime import processes

rendezvous = processes.rendezvous
for number, flags in enumerate(json.loads(sys.argv[1])):

    def of_this_training(*args, number=number):
        store, *place = next(rendezvous(*args))
        yield PrefixStore(str(number), store), *place

    processes.rendezvous = of_this_training
    if status := main_task_retrieval.main(flags):
        sys.exit(status)
"""


@pytest.fixture(scope="module")
def run_on(tiny_run, tmp_path_factory):
    """From a number of processes, the folders of the same training on them, by precision."""
    root = tmp_path_factory.mktemp("runs")
    script = root / "trainings.py"
    script.write_text(TRAININGS)

    @functools.cache
    def run_on(processes):
        folders = {precision: root / precision / str(processes) for precision in PRECISIONS}
        trainings = []
        for precision, folder in folders.items():
            more = [*SHARED, "--precision", precision, "--save_features", str(folder / "features")]
            trainings.append([*tiny_run, "--output_dir", str(folder), *more])
        finished = launch(processes, script, json.dumps(trainings), PYTHONPATH=str(ROOT))
        assert finished.returncode == 0, finished.stderr
        return folders

    return run_on


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def processes(request):
    return request.param


@pytest.fixture(scope="module", params=PRECISIONS)
def runs(request, run_on, processes):
    """The precision, and the folders of the same training on one and on several processes."""
    return request.param, {n: run_on(n)[request.param] for n in (1, processes)}


def test_the_losses_and_weights_are_those_of_one_process(runs, processes):
    precision, folders = runs
    relative = {"fp32": 1e-4, "fp64": 1e-9}[precision]
    losses = {processes: [entry["loss"] for entry in lines(folder, "train")] for processes, folder in folders.items()}
    assert len(losses[1]) == 20
    weights = {n: checkpoint(folder)["model"] for n, folder in folders.items()}
    assert losses[processes] == pytest.approx(losses[1], rel=relative)
    if precision == "fp64":
        for name, value in weights[1].items():
            assert value.dtype == torch.float64
            assert (value - weights[processes][name]).abs().max() < 1e-8, name


@pytest.mark.slow
def test_processes_that_encode_in_parts_train_the_same(run_on, tiny_run, tmp_path):
    flags = [*SHARED, "--precision", "fp64", "--accumulate", "2"]
    finished = torchrun(2, tiny_run, tmp_path / "run", *flags)
    assert finished.returncode == 0, finished.stderr
    whole, parts = run_on(1)["fp64"], tmp_path / "run"
    losses = [[entry["loss"] for entry in lines(folder, "train")] for folder in (whole, parts)]
    assert len(losses[0]) == 20 and losses[1] == pytest.approx(losses[0], rel=1e-9)
    weights = [checkpoint(folder)["model"] for folder in (whole, parts)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() < 1e-8, name


def test_the_evaluation_counts_each_item_once(runs):
    precision, folders = runs  # of 6 videos, 4 processes do not take equal shares
    for name in ("video_ids.txt", "text_ids.txt", "captions.txt"):
        one, several = (folder / "features" / name for folder in folders.values())
        assert one.read_bytes() == several.read_bytes()
    metrics = [
        [{k: v for k, v in entry.items() if k.startswith(("t2v", "v2t"))} for entry in lines(folder, "eval")]
        for folder in folders.values()
    ]
    assert len(metrics[0]) == len(metrics[1]) == 4
    if precision == "fp64":  # in fp32 a rank may turn on the last bit
        assert metrics[0] == metrics[1]


def test_what_is_measured_is_of_the_videos_of_all_processes(runs):
    precision, folders = runs
    for kind, count in (("train", 20), ("eval", 4)):
        measured = [[[entry[name] for name in WORDS] for entry in lines(folder, kind)] for folder in folders.values()]
        assert [len(part) for part in measured] == [count, count]
        if precision == "fp64":  # in fp32 a rounding may give a gap a token more
            np.testing.assert_allclose(*measured, rtol=0, atol=1e-7 if kind == "train" else 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("body", ["raise ValueError('only of this process')", "os.kill(os.getpid(), 9)"])
def test_a_process_that_fails_ends_the_others_with_its_own_message(tiny_run, tmp_path, body):
    finished = torchrun(2, tiny_run, tmp_path / "run", *SHARED, PYTHONPATH=failing(tmp_path, body))
    assert finished.returncode != 0
    assert time.time() - (tmp_path / "failing" / "begun").stat().st_mtime < 60
    if "ValueError" in body:
        assert "ValueError: only of this process" in finished.stderr
        assert "process 0: stopped, since another process failed" in finished.stderr
        assert not (tmp_path / "run" / "interrupted.json").exists()
    else:
        assert "Signal 9 (SIGKILL)" in finished.stderr
    # and the same command goes on
    again = torchrun(2, tiny_run, tmp_path / "run", *SHARED)
    assert again.returncode == 0, again.stderr
    assert [entry["step"] for entry in lines(tmp_path / "run", "train")] == list(range(1, 21))


@pytest.mark.slow
def test_a_process_that_waits_for_anothers_video_too_long_names_both(tiny_run, tmp_path):
    video = train_ids(tiny_run)[0]
    library = tmp_path / "library"
    library.mkdir()
    (library / "decord.py").write_text(LIBRARY.replace('"hang" in name', f'name == "{video}.mp4"'))
    impatient = in_program(
        tmp_path / "impatient",
        "from modules.program import arguments\n"
        "arguments.STEP_LIMIT, arguments.longest_read = 10.0, lambda time_limit: 0.0\n",
    )
    videos = shutil.copytree(path_of(tiny_run, "--features_path"), tmp_path / "videos")
    flags = [*with_value(tiny_run, "--features_path", videos), *SHARED, "--num_thread_reader", "1"]
    paths = os.pathsep.join([impatient, str(library), str(ROOT)])
    finished = torchrun(2, flags, tmp_path / "run", "--video_time_limit", "600", PYTHONPATH=paths)
    assert finished.returncode != 0
    said = re.search(
        r"process (\d) of 2: waited 10 s for process (\d) of 2, which has been reading (\S+) for \d+ s\.",
        finished.stderr,
    )
    assert said and {said[1], said[2]} == {"0", "1"} and said[3] == str(videos / f"{video}.mp4")


@pytest.mark.slow
def test_an_error_that_one_process_meets_is_said_by_it(tiny_run, tmp_path):
    videos = shutil.copytree(path_of(tiny_run, "--features_path"), tmp_path / "videos")
    bad = train_ids(tiny_run)[0]
    spoil(videos, bad)
    flags = with_value(tiny_run, "--features_path", videos)
    finished = torchrun(2, flags, tmp_path / "run", *SHARED)
    assert finished.returncode != 0
    said = [line for line in finished.stderr.splitlines() if f"{bad}.mp4" in line and "of 2: " in line]
    assert len(said) == 1


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_said_once(tiny_run, tmp_path):
    finished = torchrun(2, tiny_run, tmp_path / "run", *SHARED, "--batch_size", "5")
    assert finished.returncode != 0
    assert finished.stderr.count("multiple of the number of processes: found 5 for 2") == 1


def test_results_say_how_many_steps_were_left_out(runs):
    _, folders = runs
    for folder in folders.values():
        found = results(folder)
        assert (found["bad_videos"], found["nonfinite_steps"], found["overflow_steps"]) == (0, 0, 0)
