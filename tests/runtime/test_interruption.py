"""Runs that are killed, told to stop, or out of disk: nothing is lost, repeated or different."""

import errno
import json
import os
import signal
import threading
import time

import pytest

import main_task_retrieval
from common.files import lock_folder
from helpers.faults import in_program
from helpers.launching import start_training, wait_for
from helpers.runs import assert_equal, logged_steps, state_of
from helpers.tiny import TINY_TRAINING
from modules.runtime import interruption, run_folder
from modules.runtime.interruption import Interrupted, Interruption
from modules.runtime.run_folder import RunFolder
from modules.training.trainer import Trainer

LONG = [*TINY_TRAINING, "--epochs", "25", "--save_steps", "7"]  # 75 steps, some seconds


@pytest.fixture(scope="module")
def long_run(tiny_run, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("long_run")
    process = start_training(tiny_run, folder, *LONG)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    return folder


def finish_and_compare(tiny_run, folder, long_run):
    """The same command again ends where the uninterrupted run ended."""
    process = start_training(tiny_run, folder, *LONG)
    output = process.communicate(timeout=200)[0]
    assert process.returncode == 0, output
    for name in ("last.pt", "best.pt"):
        assert_equal(state_of(folder, name), state_of(long_run, name))
    assert (folder / "metrics.jsonl").read_bytes() == (long_run / "metrics.jsonl").read_bytes()
    assert not (folder / "interrupted.json").exists()


def test_kill_9_and_the_same_command_again_give_the_same_bits(tiny_run, long_run, tmp_path):
    for step in (3, 40):
        process = start_training(tiny_run, tmp_path, *LONG)
        wait_for(lambda step=step: max(logged_steps(tmp_path), default=0) >= step, process)
        process.kill()
        process.communicate()
    finish_and_compare(tiny_run, tmp_path, long_run)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves_with_a_code_of_its_own(tiny_run, long_run, tmp_path, number):
    process = start_training(tiny_run, tmp_path, *LONG, "--num_thread_reader", "2")
    wait_for(lambda: len(logged_steps(tmp_path)) >= 10, process)
    sent = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - sent < 10
    assert process.returncode == interruption.EXIT_CODE == 75, output
    assert "Traceback" not in output
    assert json.loads((tmp_path / "interrupted.json").read_text())["signal"] == number.name
    # the last finished step is saved, not the last that --save_steps named
    assert state_of(tmp_path)["position"]["step"] == max(logged_steps(tmp_path))
    finish_and_compare(tiny_run, tmp_path, long_run)


@pytest.mark.slow
def test_a_second_signal_changes_nothing(tiny_run, tmp_path):
    process = start_training(tiny_run, tmp_path, *LONG, "--num_thread_reader", "2")
    wait_for(lambda: len(logged_steps(tmp_path)) >= 10, process)
    for _ in range(20):
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 75, output
    assert json.loads((tmp_path / "interrupted.json").read_text())["signal"] == "SIGTERM"


def test_two_evaluations_do_not_share_a_folder(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 0.0)
    evaluate = [*tiny_run, "--output_dir", str(tmp_path), "--do_eval", "--method", "zero_shot"]
    with lock_folder(tmp_path):
        assert main_task_retrieval.main(evaluate) == 1
        assert "another run is writing to" in capsys.readouterr().err
    assert main_task_retrieval.main(evaluate) == 0
    (tmp_path / "last.pt").touch()  # as if a training had been there, beside which an evaluation has names of its own
    with lock_folder(tmp_path):
        assert main_task_retrieval.main(evaluate) == 0


@pytest.mark.slow
def test_processes_end_with_their_launcher_and_two_runs_do_not_share_a_folder(tiny_run, tmp_path, monkeypatch, capsys):
    endless = [*LONG, "--epochs", "100000"]
    process = start_training(tiny_run, tmp_path, *endless, processes=2)
    wait_for(lambda: len(logged_steps(tmp_path)) >= 3, process)
    monkeypatch.setattr(run_folder, "LOCK_PATIENCE", 2.0)  # no other run ends here, however long it is waited for
    assert main_task_retrieval.main([*tiny_run, "--output_dir", str(tmp_path), *endless]) == 1
    assert "another run is writing to" in capsys.readouterr().err
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while not (tmp_path / "interrupted.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    before = logged_steps(tmp_path)
    time.sleep(3)
    assert logged_steps(tmp_path) == before


@pytest.mark.slow
def test_a_signal_to_torchrun_leaves_a_mark_and_a_checkpoint(tiny_run, tmp_path):
    process = start_training(tiny_run, tmp_path, *LONG, processes=2)
    wait_for(lambda: len(logged_steps(tmp_path)) >= 10, process)
    sent = time.monotonic()
    process.terminate()
    output = process.communicate(timeout=60)[0]
    assert time.monotonic() - sent < 20, output
    assert process.returncode != 0
    assert json.loads((tmp_path / "interrupted.json").read_text())["signal"] == "SIGTERM", output
    assert state_of(tmp_path)["position"]["step"] == max(logged_steps(tmp_path))


@pytest.mark.slow
def test_a_step_that_takes_too_long_is_abandoned(tiny_run, tmp_path):
    """A backward pass is one call: Python's own signal handlers wait for its end."""
    slow = in_program(
        tmp_path / "slow",
        "import torch, time, ctypes\n"
        "backward, calls = torch.Tensor.backward, 0\n"
        "def slow(self, *args, **kwargs):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 6:\n"
        f"        open({str(tmp_path / 'slow' / 'begun')!r}, 'w').close()\n"
        "        end = time.monotonic() + 100\n"
        "        while time.monotonic() < end: ctypes.CDLL(None).sleep(100)\n"
        "    return backward(self, *args, **kwargs)\n"
        "torch.Tensor.backward = slow\n",
    )
    process = start_training(tiny_run, tmp_path / "out", *LONG, PYTHONPATH=slow)
    wait_for((tmp_path / "slow" / "begun").exists, process)
    sent = time.monotonic()
    process.terminate()
    output = process.communicate(timeout=30)[0]
    assert interruption.PATIENCE < time.monotonic() - sent < 10
    assert process.returncode == 75, output
    assert state_of(tmp_path / "out")["position"]["step"] == 5
    assert json.loads((tmp_path / "out" / "interrupted.json").read_text())["signal"] == "SIGTERM"


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_whose_decoder_hangs(tiny_run, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    (library / "decord.py").write_text(
        "import pathlib, time\n"
        "class logging:\n"
        "    QUIET = ERROR = 0\n"
        "    set_level = staticmethod(lambda level: None)\n"
        "cpu = int\n"
        "def VideoReader(path, **options):\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'hangs').touch()\n"
        "    time.sleep(100)\n"
    )
    more = ["--do_eval", "--method", "zero_shot", "--num_thread_reader", "1"]
    process = start_training(tiny_run, tmp_path / "out", *more, PYTHONPATH=str(library))
    wait_for((tmp_path / "hangs").exists, process)
    sent = time.monotonic()
    process.terminate()
    output = process.communicate(timeout=30)[0]
    assert time.monotonic() - sent < 10
    assert process.returncode == 75, output


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so(tiny_run, tmp_path, monkeypatch, capsys):
    flags = [*tiny_run, "--output_dir", str(tmp_path), *TINY_TRAINING, "--save_steps", "2"]
    write, count = os.fsync, 0

    def full(descriptor):
        nonlocal count
        count += 1
        if count > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main_task_retrieval.main(flags) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message and "last.pt is whole" in message and "continue" in message
    assert not list(tmp_path.glob(".*.partial"))
    before = state_of(tmp_path)["position"]["step"]
    assert before < 9
    assert main_task_retrieval.main(flags) == 0
    assert f"continuing {tmp_path} at step {before}" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_finished_leaves_the_one_before(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, is_main=True)
    folder.save_checkpoint("last.pt", {"method": "stop", "identity": {}, "model": {}, "step": 1})
    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
            with pytest.raises(ValueError, match=r"last\.pt cannot be written: Input/output error"):
                folder.save_checkpoint("last.pt", {"method": "stop", "identity": {}, "model": {}, "step": 2})
        assert folder.load_checkpoint("last.pt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_state_that_is_half_changed_is_not_saved():
    saved = []
    with Interruption() as listener:
        with pytest.raises(RuntimeError), listener.finish_steps(lambda: saved.append("step")):
            listener.signal_name = None
            with listener.changing_state():
                raise RuntimeError
        assert not saved
        with pytest.raises(Interrupted), listener.finish_steps(lambda: saved.append("step")):
            listener.signal_name = "SIGTERM"
            with listener.changing_state():
                raise RuntimeError("half done")
        assert not saved
        with pytest.raises(Interrupted), listener.finish_steps(lambda: saved.append("step")):
            raise RuntimeError("the other processes are gone")
        assert saved == ["step"]


@pytest.mark.parametrize("in_time", [True, False])
def test_a_checkpoint_that_is_being_written_is_waited_for_but_not_forever(monkeypatch, in_time):
    for name, seconds in (("PATIENCE", 0.1), ("POLL", 0.01), ("LOCK_PATIENCE", 0.2)):
        monkeypatch.setattr(interruption, name, seconds)
    monkeypatch.setattr(interruption, "SAVING", 60.0 if in_time else 0.2)
    abandoned, saved = threading.Event(), []
    monkeypatch.setattr(Interruption, "_leave", lambda self: abandoned.set())

    def save():
        with listener.saving():
            abandoned.wait(0.6 if in_time else 60)  # much longer than a step has
            saved.append("step")

    with pytest.raises(Interrupted), Interruption() as listener, listener.finish_steps(save):
        os.kill(os.getpid(), signal.SIGTERM)
        raise Interrupted
    assert saved == ["step"] and abandoned.is_set() != in_time


def test_handlers_are_put_back(tiny_run, tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    wakeup = signal.set_wakeup_fd(-1)
    assert (
        main_task_retrieval.main([*tiny_run, "--output_dir", str(tmp_path), "--do_eval", "--method", "zero_shot"]) == 0
    )
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(wakeup) == -1


def test_a_run_is_known_by_its_settings_from_the_first_step_on(tiny_run, tmp_path, monkeypatch, capsys):
    flags = [*tiny_run, "--output_dir", str(tmp_path), *TINY_TRAINING]

    def fail(*args):
        raise FloatingPointError("before the first step")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_compute", fail)
        assert main_task_retrieval.main(flags) == 1
    assert main_task_retrieval.main([*flags, "--lr", "0.5"]) == 1
    assert "lr: was 0.001, is 0.5" in capsys.readouterr().err
    assert main_task_retrieval.main(flags) == 0
