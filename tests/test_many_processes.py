"""One, two and four processes give one result; one that fails ends all of them."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY_TRAINING
from test_bad_input import path_of, spoil, train_ids, with_value
from test_program import lines, torchrun

# 22 samples, of which neither 2 nor 4 processes take an equal share, in batches of 4: 5 steps an epoch
SHARED = [*TINY_TRAINING, "--batch_size", "4", "--epochs", "4", "--mask_same_video", "--on_bad_video", "error"]


@pytest.fixture(scope="module", params=["fp32", "fp64"])
def runs(request, tiny_run, tmp_path_factory):
    """The precision, and the folders of the same training on 1, 2 and 4 processes."""
    root = tmp_path_factory.mktemp(request.param)
    folders = {}
    for processes in (1, 2, 4):
        folders[processes] = root / str(processes)
        more = [*SHARED, "--precision", request.param, "--save_features", str(folders[processes] / "features")]
        finished = torchrun(processes, tiny_run, folders[processes], *more)
        assert finished.returncode == 0, finished.stderr
    return request.param, folders


def test_the_losses_and_weights_are_those_of_one_process(runs):
    precision, folders = runs
    relative = {"fp32": 1e-4, "fp64": 1e-9}[precision]
    losses = {processes: [entry["loss"] for entry in lines(folder, "train")] for processes, folder in folders.items()}
    assert len(losses[1]) == 20
    weights = {n: torch.load(folder / "last.pt", weights_only=True)["model"] for n, folder in folders.items()}
    for processes in (2, 4):
        assert losses[processes] == pytest.approx(losses[1], rel=relative)
        if precision == "fp64":
            for name, value in weights[1].items():
                assert value.dtype == torch.float64
                assert (value - weights[processes][name]).abs().max() < 1e-8, name


def test_the_evaluation_counts_each_item_once(runs):
    precision, folders = runs
    for processes in (2, 4):  # of 6 videos, 4 processes do not take equal shares
        for name in ("video_ids.txt", "text_ids.txt", "captions.txt"):
            paths = [folders[n] / "features" / name for n in (1, processes)]
            assert paths[0].read_bytes() == paths[1].read_bytes()
        metrics = [
            [{k: v for k, v in entry.items() if k.startswith(("t2v", "v2t"))} for entry in lines(folders[n], "eval")]
            for n in (1, processes)
        ]
        assert len(metrics[0]) == len(metrics[1]) == 4
        if precision == "fp64":  # in fp32 a rank may turn on the last bit
            assert metrics[0] == metrics[1]


def failing(tmp_path, body):
    """A folder for PYTHONPATH that makes one rank fail in its fourth backward pass."""
    folder = tmp_path / "failing"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    import torch\n"
        "    backward, calls = torch.Tensor.backward, []\n"
        "    def failing(self, *args, **kwargs):\n"
        "        calls.append(1)\n"
        f"        if len(calls) == 4: open({str(folder / 'begun')!r}, 'w').close()\n"
        f"        if len(calls) == 4: {body}\n"
        "        return backward(self, *args, **kwargs)\n"
        "    torch.Tensor.backward = failing\n"
    )
    return str(folder)


def run_two(flags, folder, *more, **environment):
    """Run two processes, in another environment."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["main_task_retrieval.py", *flags, "--output_dir", str(folder), *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("body", ["raise ValueError('only of this process')", "os.kill(os.getpid(), 9)"])
def test_a_process_that_fails_ends_the_others_with_its_own_message(tiny_run, tmp_path, body):
    finished = run_two(tiny_run, tmp_path / "run", *SHARED, PYTHONPATH=failing(tmp_path, body))
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


def test_an_error_that_one_process_meets_is_said_by_it(tiny_run, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in path_of(tiny_run, "--features_path").iterdir():
        (videos / path.name).write_bytes(path.read_bytes())
    bad = train_ids(tiny_run)[0]
    spoil(videos, bad)
    flags = with_value(tiny_run, "--features_path", videos)
    finished = run_two(flags, tmp_path / "run", *SHARED)
    assert finished.returncode != 0
    said = [line for line in finished.stderr.splitlines() if f"{bad}.mp4" in line and "of 2: " in line]
    assert len(said) == 1


def test_an_error_that_all_processes_meet_is_said_once(tiny_run, tmp_path):
    finished = run_two(tiny_run, tmp_path / "run", *SHARED, "--batch_size", "5")
    assert finished.returncode != 0
    assert finished.stderr.count("multiple of the number of processes: found 5 for 2") == 1


def test_results_say_how_many_steps_were_left_out(runs):
    _, folders = runs
    for folder in folders.values():
        results = json.loads((folder / "results.json").read_text())
        assert (results["bad_videos"], results["nonfinite_steps"], results["overflow_steps"]) == (0, 0, 0)
