"""Several processes of one machine: what comes last on the screen, what log.txt has, the exit status."""

import logging
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

import main_task_retrieval
from common.settings import result_settings
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from helpers.faults import failing, spoil
from helpers.flags import path_of, train_ids, with_value
from helpers.launching import ENVIRONMENT, start, start_training, wait_for
from helpers.paths import ROOT
from helpers.runs import lines, logged_steps, run
from helpers.tiny import TINY_TRAINING
from modules.methods import METHODS
from modules.program.arguments import CommonSettings, parse_arguments
from modules.runtime import interruption, launch
from modules.runtime.interruption import EXIT_CODE, Interruption
from modules.runtime.launch import exit_status
from modules.runtime.processes import check_gpus
from modules.runtime.run_folder import LogFile
from modules.training.trainer import Trainer, TrainSettings

SHARED = [*TINY_TRAINING, "--batch_size", "4", "--epochs", "4", "--on_bad_video", "error"]
LONG = [*SHARED, "--epochs", "100000"]


def launched(processes, flags, folder, *more, program="main_task_retrieval.py", **environment):
    """Start a program in several processes."""
    command = ["-m", "modules.runtime.launch", "--processes", processes, program, *flags, "--output_dir", folder]
    # in a session of its own, the group that Ctrl-C of its terminal would reach
    return start(*command, *more, environment=ENVIRONMENT | environment, start_new_session=True)


def finished(process, seconds=120):
    """The exit status and the lines on the screen of a process when it has ended."""
    output = process.communicate(timeout=seconds)[0]
    return process.returncode, [line for line in re.split(r"[\n\r]", output) if line.strip()]


@pytest.mark.slow
def test_an_error_that_all_processes_meet_is_the_last_line_and_in_the_log_of_each(tiny_run, tmp_path):
    flags = with_value(tiny_run, "--pretrained_clip_name", "not looked for yet")
    status, screen = finished(launched(3, flags, tmp_path / "run", *SHARED))
    message = "must be a multiple of the number of processes: found 4 for 3; 3 and 6 are the nearest"
    assert status == 1 and screen[-1].endswith(message)
    assert len(screen) == 2 and "is starting" in screen[0]  # and no traceback, of nobody
    log = (tmp_path / "run" / "log.txt").read_text()
    assert message in log
    for rank in range(3):  # one may have been stopped before it came that far
        assert re.search(rf"ERROR process {rank}( of 3: --batch_size|: stopped, since another process failed)", log)


@pytest.mark.slow
def test_an_error_that_one_process_meets_comes_behind_the_progress_of_the_others(tiny_run, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(path_of(tiny_run, "--features_path"), videos)
    bad = train_ids(tiny_run)[0]
    spoil(videos, bad)
    flags = with_value(tiny_run, "--features_path", videos)
    status, screen = finished(launched(2, flags, tmp_path / "run", *SHARED))
    *_, message, remedy = screen
    assert status == 1 and f"{bad}.mp4" in message and re.match(r"process [01] of 2: ", message)
    assert "--on_bad_video skip" in remedy
    assert not [line for line in screen if "Traceback" in line or "stopped" in line]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"ERROR {message}\n{remedy}" in log
    met = int(message.split()[1])
    assert f"ERROR process {1 - met}: stopped, since another process failed" in log


@pytest.mark.slow
def test_an_error_of_the_program_is_shown_whole_and_logged(tiny_run, tmp_path):
    body = "raise ValueError('only of this process')"
    status, screen = finished(launched(2, tiny_run, tmp_path / "run", *SHARED, PYTHONPATH=failing(tmp_path, body)))
    assert status == 1 and screen[-1] == "ValueError: only of this process"
    first = max(place for place, line in enumerate(screen) if line.startswith("Traceback"))
    assert screen[first - 1] == "process 1 of 2:"
    assert [line for line in screen[first:] if "in failing" in line]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(r"ERROR process 1 of 2:\nTraceback(.|\n)*\nValueError: only of this process\n", log)
    assert not (tmp_path / "run" / "interrupted.json").exists()


@pytest.mark.slow
def test_a_process_that_was_killed_is_named_and_the_same_command_goes_on(tiny_run, tmp_path):
    environment = {"PYTHONPATH": failing(tmp_path, "os.kill(os.getpid(), 9)")}
    status, screen = finished(launched(2, tiny_run, tmp_path / "run", *SHARED, **environment))
    assert status == 128 + signal.SIGKILL
    assert screen[-1].startswith("process 1 of 2 was killed by signal 9 (SIGKILL)") and "memory" in screen[-1]
    assert not [line for line in screen if "Traceback" in line]  # of the other one, whose connection broke
    assert f"process 0: stopped, since {screen[-1]}" in (tmp_path / "run" / "log.txt").read_text()
    assert not (tmp_path / "run" / "interrupted.json").exists()
    status, screen = finished(launched(2, tiny_run, tmp_path / "run", *SHARED))
    assert status == 0, screen
    assert [entry["step"] for entry in lines(tmp_path / "run", "train")] == list(range(1, 21))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_run_that_is_told_to_stop_leaves_with_the_programs_status(tiny_run, tmp_path, name):
    process = launched(2, tiny_run, tmp_path, *LONG, "--num_thread_reader", "1")
    wait_for(lambda: len(logged_steps(tmp_path)) >= 3, process)
    sent = time.monotonic()
    if name == "SIGINT":  # as a terminal sends it
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    status, screen = finished(process)
    assert time.monotonic() - sent < 20
    assert status == interruption.EXIT_CODE == 75, screen
    assert "the same command continues" in screen[-1] and not [line for line in screen if "Traceback" in line]
    assert f'"{name}"' in (tmp_path / "interrupted.json").read_text()


def test_ctrl_c_before_the_program_listens_is_quiet(tiny_run, tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import os, pathlib, time\n"
        "if 'RANK' in os.environ:\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'began' + os.environ['RANK']).touch()\n"
        "    time.sleep(30)\n"
    )
    process = launched(2, tiny_run, tmp_path / "run", *SHARED, PYTHONPATH=str(tmp_path / "slow"))
    wait_for(lambda: (tmp_path / "began0").exists() and (tmp_path / "began1").exists(), process)
    os.killpg(process.pid, signal.SIGINT)
    status, screen = finished(process, 20)
    assert (status, screen) == (EXIT_CODE, [])


def test_ctrl_c_while_a_program_is_starting_is_quiet(tiny_run, tmp_path):
    process = start_training(tiny_run, tmp_path / "run", *TINY_TRAINING)
    assert "is starting" in process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == EXIT_CODE


@pytest.mark.parametrize(
    ("codes", "killed", "told", "status"),
    [
        ({1: 0, 0: 0}, {}, False, 0),
        ({1: 1, 0: -15}, {}, False, 1),  # the second was told by the launcher, since the first failed
        ({1: 2, 0: 1}, {}, False, 2),
        ({1: -9, 0: 1}, {1: ""}, False, 137),
        ({0: 1, 1: -9}, {1: ""}, False, 137),  # whose connection broke was seen first
        ({1: 75, 0: 75}, {}, True, 75),
        ({1: 75, 0: 75}, {}, False, 75),  # a scheduler told them, not the launcher
        ({0: 75, 1: -6}, {1: ""}, True, 75),  # the main process has saved
        ({1: -15, 0: -2}, {}, True, 75),  # they did not listen yet
        ({1: 0, 0: 0}, {}, True, 0),  # they were done
        ({1: -15, 0: 1}, {}, True, 1),
        ({1: 75, 0: -9}, {0: ""}, True, 137),
    ],
)
def test_one_status_for_all(codes, killed, told, status):
    assert exit_status(codes, killed, told) == status


def test_the_first_signal_is_the_one_that_counts():
    with Interruption() as listener:
        listener.start_leaving()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert listener.signal_name == "SIGINT"


def test_an_error_of_the_program_is_in_the_log_of_one_process_too(tiny_run, tmp_path, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("nobody expects this")

    monkeypatch.setattr(Trainer, "_compute", fail)
    with pytest.raises(ZeroDivisionError):
        run(tiny_run, tmp_path, *TINY_TRAINING)
    log = (tmp_path / "log.txt").read_text()
    assert re.search(r"ERROR .*\nTraceback(.|\n)* in fail\n(.|\n)*ZeroDivisionError: nobody expects this\n", log)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a disk that is always full")
def test_a_log_that_cannot_be_written_adds_nothing_to_the_screen(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = logging.Logger("of this test")
    log.addHandler(LogFile(tmp_path))
    log.error("the disk is full")
    assert capsys.readouterr() == ("", "")


def test_a_log_takes_names_of_any_bytes(tmp_path):
    log = logging.Logger("of this test")
    log.addHandler(LogFile(tmp_path))
    log.error("%s cannot be read", os.fsdecode(b"video\xff.mp4"))
    assert "video\\udcff.mp4 cannot be read" in (tmp_path / "log.txt").read_text()


def test_more_processes_than_gpus_are_refused_before_they_are_started(monkeypatch, capsys):
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    try:
        assert launch.main(["--processes", "3", str(ROOT / "main_task_retrieval.py")]) == 1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "3 processes were asked for on this machine, which has 2 GPUs" in capsys.readouterr().err
    check_gpus(2)


@pytest.fixture
def checkout(tmp_path):
    """A folder with the scripts, whose Python shows its arguments."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "scripts" / "setup.sh").write_text("exit 0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    # asked for the number of GPUs, it has two
    python.write_text('#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo 2; else printf "%s\\n" "$@"; fi\n')
    python.chmod(0o755)
    return tmp_path


# of each script, what --datatype it gives
RETRIEVAL_SCRIPTS = {
    **{"msrvtt": "msrvtt", "vatex": "vatex", "activitynet": "activity", "didemo": "didemo", "msvd": "msvd"},
    "lsmdc": "lsmdc",
}
RECOGNITION_SCRIPTS = {name: name for name in ("hmdb51", "ucf101", "ssv2", "kinetics400")}


def test_every_dataset_has_a_script():
    assert set(RETRIEVAL_SCRIPTS.values()) == set(RETRIEVAL)
    assert set(RECOGNITION_SCRIPTS.values()) == set(RECOGNITION)


@pytest.mark.parametrize("name", RETRIEVAL_SCRIPTS | RECOGNITION_SCRIPTS)
def test_the_datasets_scripts_call_python_for_one_process_and_the_launcher_for_several(checkout, name):
    program = "main_task_retrieval.py" if name in RETRIEVAL_SCRIPTS else "main_task_recognition.py"
    for environment, begin in (
        ({"GPUS": "1"}, [program]),
        ({"GPUS": "3"}, ["-m", "modules.runtime.launch", "--processes", "3", program]),
        ({}, ["-m", "modules.runtime.launch", "--processes", "2", program]),
    ):
        clean = {key: value for key, value in os.environ.items() if key not in ("GPUS", "VIDEOS", "PACKED", "OUTPUT")}
        command = ["bash", f"scripts/{name}.sh", "--batch_size", "6"]
        environment = clean | environment | {"VIDEOS": "my videos", "OUTPUT": "runs/mine"}
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        arguments = result.stdout.splitlines()
        assert result.returncode == 0 and arguments[: len(begin)] == begin, result.stderr
        assert arguments[-2:] == ["--batch_size", "6"]
        assert arguments[arguments.index("--features_path") + 1] == "my videos"
        assert arguments[arguments.index("--output_dir") + 1] == "runs/mine"
        assert arguments[arguments.index("--datatype") + 1] == (RETRIEVAL_SCRIPTS | RECOGNITION_SCRIPTS)[name]


@pytest.mark.parametrize(
    ("flags", "published"),
    [
        ([], True),
        (["--method", "stop"], True),
        (["--method=stop", "--text_prompts", "0"], True),
        (["--method", "clip4clip"], False),
        (["--method=vop"], False),
        (["--method", "vop", "--method", "stop"], True),
    ],
)
def test_msrvtt_sets_what_the_published_run_of_stop_set_and_nothing_of_other_methods(checkout, flags, published):
    environment = os.environ | {"GPUS": "1"}
    command = ["bash", "scripts/msrvtt.sh", *flags]
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    text = " ".join(result.stdout.split())
    assert ("--method stop --text_prompts 8 --max_grad_norm 4 " in f"{text} ") == published
    assert text.endswith(" ".join(flags)) and ("--text_prompts" in text) == published


def parsed(checkout, script, *flags, **environment):
    """The command line that a retrieval script gives to the program, as the program understands it."""
    clean = {key: value for key, value in os.environ.items() if key not in ("DATA", "VIDEOS", "PACKED", "OUTPUT")}
    command = ["bash", f"scripts/{script}.sh", *flags]
    environment = clean | {"GPUS": "1"} | environment
    result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return parse_arguments(result.stdout.splitlines()[1:], "", RETRIEVAL, main_task_retrieval.RetrievalSettings)


@pytest.mark.parametrize(
    ("script", "gpus", "batch", "epochs", "rate", "frames", "words"),
    [("vatex", 8, 64, 10, 5e-3, 12, 32), ("activitynet", 8, 16, 10, 1e-3, 64, 64)],
)
def test_a_script_with_a_published_setting_has_that_setting(checkout, script, gpus, batch, epochs, rate, frames, words):
    found = parsed(checkout, script)
    train, common = found.train, found.common
    assert (train.batch_size, train.epochs, train.lr) == (gpus * batch, epochs, rate)
    assert (common.max_frames, common.max_words) == (frames, words)
    assert (train.weight_decay, found.method, found.method_settings.text_prompts) == (0.2, "stop", 8)
    assert train.max_grad_norm == gpus  # there an average of shares, clipped at 1
    # the rate is STOP's; other methods keep theirs, with the dataset's batches and frames
    other = parsed(checkout, script, "--method", "clip4clip")
    assert other.train.lr == METHODS["clip4clip"].recipe["lr"] and other.train.batch_size == gpus * batch
    assert other.common.output_dir == Path(f"runs/{script}_clip4clip")


def test_scripts_name_their_files_in_the_folder_that_is_given(checkout):
    for script, datatype in RETRIEVAL_SCRIPTS.items():
        found = parsed(checkout, script, DATA="/my data")
        fields = RETRIEVAL[datatype].settings.__dataclass_fields__
        files = {name: getattr(found.data, name) for name in fields if name not in ("packed", "features_path")}
        paths = [path for path in files.values() if isinstance(path, Path)]
        assert len(paths) >= 2 and {path.parent for path in paths} == {Path("/my data")}
        assert RETRIEVAL[datatype].official(found.data), script
        assert found.data.features_path.parent == Path("/my data") and found.data.packed is None
        packed = parsed(checkout, script, PACKED="pack").data
        assert packed.packed == Path("pack") and packed.features_path is None


# of every program, what they take where nothing brings its own
DEFAULTS = result_settings(TrainSettings(), CommonSettings())


def said_of_methods():
    """What the header of msrvtt.sh says of each method: its own values of flags."""
    header = (ROOT / "scripts" / "msrvtt.sh").read_text().split("# --method runs")[1].split("set -euo")[0]
    lines = re.findall(r"^#   (\w+)  +(.*)$", header, re.MULTILINE)
    return {
        method: {name: float(value) for name, value in re.findall(r"(\w+) ([\de.-]+)", text) if name in DEFAULTS}
        for method, text in lines
    }


def test_msrvtt_runs_each_method_with_its_own_setting_and_its_header_says_which_have_one(checkout):
    environment = {key: value for key, value in os.environ.items() if key != "OUTPUT"} | {"GPUS": "1"}
    for name, method in METHODS.items():
        assert said_of_methods()[name] == method.recipe
        command = ["bash", "scripts/msrvtt.sh", "--method", name]
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        flags = result.stdout.splitlines()[1:]
        found = parse_arguments(flags, "", RETRIEVAL, main_task_retrieval.RetrievalSettings)
        assert (found.method, found.common.do_train, found.common.do_eval) == (name, method.trains, not method.trains)
        own = {"max_grad_norm": 4} if name == "stop" else {}
        assert result_settings(found.train, found.common) == DEFAULTS | method.recipe | own
        assert found.common.output_dir == Path("runs/msrvtt" if name == "stop" else f"runs/msrvtt_{name}")


@pytest.mark.parametrize(("flags", "expected"), [(["--lr", "-1"], 1), (["--no_such_flag"], 2)])
@pytest.mark.slow
def test_what_is_wrong_with_a_flag_is_said_once(tiny_run, tmp_path, flags, expected):
    status, screen = finished(launched(2, tiny_run, tmp_path / "run", *SHARED, *flags))
    assert status == expected
    assert [flags[0] in line for line in screen].count(True) == 1 and flags[0] in screen[-1]
    assert not (tmp_path / "run").exists()
