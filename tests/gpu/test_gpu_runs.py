"""On a GPU, runs with --deterministic have the same bits: twice, after an interruption, in a group over NCCL."""

import sys

import pytest

from helpers.launching import RETRIEVAL, run_to_end, start, wait_for
from helpers.paths import ROOT
from helpers.runs import assert_equal, logged_steps, state_of
from helpers.tiny import TINY_TRAINING
from modules.runtime.interruption import EXIT_CODE

pytestmark = pytest.mark.gpu

LONG = [*TINY_TRAINING, "--epochs", "25", "--save_steps", "7", "--deterministic", "--precision", "bf16"]  # 75 steps
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def start_long(flags, folder, *more):
    """Start the run in a process of its own: cuBLAS learns once in a process that it is to be deterministic."""
    return start(RETRIEVAL, *flags, "--output_dir", folder, *LONG, *more, environment=ENVIRONMENT)


def finish(process):
    """Wait for a run's end."""
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def long_run(tiny_run, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("long_run")
    finish(start_long(tiny_run, folder))
    assert "bf16 on cuda:0" in (folder / "log.txt").read_text()
    return folder


def assert_same(folder, long_run):
    """A run ended where the uninterrupted one did, by the same way."""
    for name in ("last.pt", "best.pt"):
        assert_equal(state_of(folder, name), state_of(long_run, name))
    assert (folder / "metrics.jsonl").read_bytes() == (long_run / "metrics.jsonl").read_bytes()


def test_the_same_command_twice_gives_the_same_bits(tiny_run, long_run, tmp_path):
    finish(start_long(tiny_run, tmp_path))
    assert_same(tmp_path, long_run)


def test_an_interrupted_run_goes_on_to_the_same_bits(tiny_run, long_run, tmp_path):
    process = start_long(tiny_run, tmp_path, "--num_thread_reader", "2")
    wait_for(lambda: len(logged_steps(tmp_path)) >= 10, process)
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == EXIT_CODE, output
    assert 0 < state_of(tmp_path)["position"]["step"] < 75
    finish(start_long(tiny_run, tmp_path))
    assert_same(tmp_path, long_run)


def test_a_group_of_one_process_over_nccl_gives_the_same_bits(tiny_run, long_run, tmp_path):
    program = str(ROOT / "tests" / "gpu" / "group_of_one.py")
    command = [sys.executable, program, *tiny_run, "--output_dir", str(tmp_path), *LONG]
    code = f"import sys\nfrom modules.runtime.launch import launch\nsys.exit(launch({command!r}, 1, []))"
    finished = run_to_end("-c", code, environment=ENVIRONMENT | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "nccl" in finished.stdout.split("backends:")[1]
    assert_same(tmp_path, long_run)
