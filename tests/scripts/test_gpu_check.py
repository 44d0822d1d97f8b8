"""What is measured on a machine with a GPU: what a trace tells, and what is kept when a part cannot be measured."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.paths import ROOT
from helpers.tiny import make_tiny_clip, save_clip_folder
from scripts.benchmark import benchmark
from scripts.benchmark.model import FLOOR, PER_LAYER, SUBJECTS, Setup
from scripts.gpu import check, parts, step_trace
from scripts.gpu.check import Part, Report, make_parts, read_junit, run_part, run_parts
from scripts.gpu.step_trace import STEPS_NAME, summarize


def event(cat, name, ts, dur, tid=1):
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "pid": 0, "tid": tid, "args": {}}


# two steps, from 1000 to 2000, whose last kernel ends at 2100
TRACE = [
    {"ph": "M", "name": "process_name", "pid": 0, "args": {"name": "python"}},
    {"ph": "s", "cat": "ac2g", "name": "ac2g", "ts": 1100, "pid": 0, "tid": 1, "id": 7},
    event("user_annotation", STEPS_NAME, 1000, 1000),
    event("gpu_user_annotation", STEPS_NAME, 1100, 1000, tid=7),
    event("kernel", "gemm", 500, 400, tid=7),  # of a step before
    event("kernel", "gemm", 1100, 100, tid=7),
    event("kernel", "norm", 1150, 100, tid=8),  # at the same time, on another stream
    event("kernel", "gemm", 1400, 50, tid=7),
    event("kernel", "norm", 1900, 200, tid=7),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 1300, 5, tid=7),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 1310, 90, tid=7),
    event("cpu_op", "aten::item", 1280, 60),
    event("cpu_op", "aten::_local_scalar_dense", 1290, 40),
    event("cpu_op", "aten::linear", 1000, 900, tid=2),  # of another thread
    event("cuda_runtime", "cudaMemcpyAsync", 1295, 5),
    event("cuda_runtime", "cudaStreamSynchronize", 1301, 20),
    event("cuda_runtime", "cudaStreamSynchronize", 1700, 20),
    event("cuda_driver", "cuLaunchKernel", 1710, 5),
    event("cuda_runtime", "cudaDeviceSynchronize", 2001, 99),  # behind the steps, to see their end
]


def test_a_trace_tells_what_the_gpu_did_in_a_step():
    found = summarize(TRACE, num_steps=2)
    busy = 150 + 50 + 200
    assert found["seconds"] == pytest.approx(1100e-6 / 2)
    assert found["busy_seconds"] == pytest.approx(busy * 1e-6 / 2)
    assert found["idle_share"] == pytest.approx(1 - busy / 1100)
    assert found["kernels_called"] == 2
    norm, gemm = found["kernels"]
    assert (norm["name"], norm["calls"], norm["share"]) == ("norm", 1, pytest.approx(300 / 450))
    assert (gemm["name"], gemm["seconds"]) == ("gemm", pytest.approx(150e-6 / 2))
    assert found["waits"] == 1 and found["read_back"] == 0.5
    assert found["waits_in"] == {"aten::_local_scalar_dense": 0.5, step_trace.WITHOUT_NAME: 0.5}


def test_the_most_expensive_kernels_are_the_first_ten_of_all():
    kernels = [event("kernel", f"kernel {number}", 1100 + 10 * number, number + 1) for number in range(30)]
    found = summarize([*TRACE[:3], *kernels], num_steps=1)
    assert [kernel["name"] for kernel in found["kernels"]] == [f"kernel {number}" for number in range(29, 19, -1)]
    assert sum(kernel["share"] for kernel in found["kernels"]) == pytest.approx(sum(range(21, 31)) / sum(range(31)))


@pytest.mark.parametrize(("left_out", "message"), [("user_annotation", STEPS_NAME), ("kernel", "no kernel")])
def test_a_trace_without_steps_or_kernels_is_refused(left_out, message):
    with pytest.raises(ValueError, match=message):
        summarize([one for one in TRACE if one.get("cat") != left_out], num_steps=2)


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """The tiny CLIP on the CPU."""
    folder = save_clip_folder(tmp_path_factory.mktemp("clip") / "clip", make_tiny_clip().model)
    return Setup(batch_size=4, num_frames=3, device="cpu", precision="fp32", threads=1, clip=folder)


def test_the_steps_that_are_recorded_are_those_of_a_training(setup, monkeypatch):
    made = []
    step = step_trace.Step
    monkeypatch.setattr(step_trace, "Step", lambda *args: made.append(step(*args)) or made[-1])
    take = step_trace.make_step(setup)
    before = made[0].model.trained_state()
    losses = [take() for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses))) and len(set(losses)) == 3
    after = made[0].model.trained_state()
    assert all(torch.isfinite(value).all() and not torch.equal(value, before[name]) for name, value in after.items())


def test_the_trace_is_described(setup):
    found = {"unrecorded_seconds": 0.0005, "unrecorded_idle_share": 0.6, **summarize(TRACE, 2)}
    text = step_trace.describe(found, setup)
    assert "kernels run in 0.0002 s of it, so that the GPU idles for 60.0%" in text
    assert "waits for the GPU 1 times a step (aten::_local_scalar_dense 0.5, " in text
    assert "| `norm` | 0.15 | 1 | 66.7% |" in text


def python_part(name, code, seconds=30.0):
    """A part of some code, which finds the file for its results in `sys.argv[1]`."""
    code = f"import json, os, subprocess, sys, time\nfrom pathlib import Path\nresults = Path(sys.argv[1])\n{code}"
    return Part(name, [sys.executable, "-c", code], seconds, lambda path: json.loads(path.read_text()))


def test_a_part_that_fails_or_hangs_loses_nothing_of_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SHORTEST", 1.0)
    child = tmp_path / "child"
    hangs = (
        "results.write_text('{\"first\": 1}')\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"Path({str(child)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    of_all = [
        python_part("good", "results.write_text('{\"found\": 7}'); print('| a table |')"),
        python_part("bad", "print('before'); raise ValueError('broken')"),
        python_part("hangs", hangs, seconds=1.5),
        python_part("garbled", "results.write_text('{')"),
        python_part("last", "results.write_text('{\"found\": 8}')"),
    ]
    report = Report(tmp_path / "out.json", {"machine": {}})
    start = time.monotonic()
    assert not run_parts(of_all, report, start + 30)
    assert time.monotonic() - start < 20
    found = json.loads(report.output.read_text())["parts"]
    assert {name: part["outcome"] for name, part in found.items()} == {
        "good": "done",
        "bad": "failed",
        "hangs": "timed out",
        "garbled": "done",
        "last": "done",
    }
    assert found["good"]["results"] == {"found": 7} and found["last"]["results"] == {"found": 8}
    assert found["hangs"]["results"] == {"first": 1} and "results" not in found["garbled"]
    assert found["bad"]["exit_status"] == 1
    text = report.text_file.read_text()
    assert report.text_file == tmp_path / "out.txt"
    assert "| a table |" in text and "before" in text and "ValueError: broken" in text
    assert "timed out after" in text and "what it had found until then is kept" in text
    pid = int(child.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_parts_that_have_no_time_left_are_left_out_and_a_part_has_no_more_than_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "SHORTEST", 0.3)
    report = Report(tmp_path / "out.json", {})
    of_all = [python_part("long", "time.sleep(60)", seconds=50.0), python_part("late", "pass")]
    start = time.monotonic()
    assert not run_parts(of_all, report, start + 1.5)
    assert time.monotonic() - start < 10
    found = json.loads(report.output.read_text())["parts"]
    assert found["long"]["outcome"] == "timed out" and found["late"]["outcome"] == "skipped"
    assert "# late\n\nskipped: the time was up" in report.text_file.read_text()


def test_tests_are_counted_with_what_those_that_failed_said(tmp_path):
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'not equal'\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError('no device')\n"
        "def test_error(broken): pass\n"
        "@pytest.mark.skip(reason='needs two')\n"
        "def test_skipped(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", str(tmp_path / "test_some.py"), "-q", "-p", "no:cacheprovider"]
    found, printed = run_part(Part("tests", [*command, "--junitxml"], 60, read_junit), 60, tmp_path)
    assert found["outcome"] == "failed" and "1 failed, 1 passed, 1 skipped, 1 error" in printed
    results = found["results"]
    assert (results["passed"], results["skipped"]) == (1, 1) and results["failed"].keys() == {"test_bad", "test_error"}
    assert "not equal" in results["failed"]["test_bad"] and "no device" in results["failed"]["test_error"]


def test_every_test_for_a_gpu_and_every_measurement_is_a_part():
    commands = [" ".join(part.command) for part in make_parts("python", 128)]
    for path in (ROOT / "tests" / "gpu").glob("test_*.py"):
        assert "pytest.mark.gpu" in path.read_text()
        assert len([command for command in commands if str(path) in command]) == 1
    for name in parts.PARTS:
        assert len([command for command in commands if f"parts.py {name} " in command]) == 1
    assert len(commands) == len(parts.PARTS) + len(list((ROOT / "tests" / "gpu").glob("test_*.py")))


def test_what_is_measured_is_the_published_batch_in_bf16_on_the_gpu(setup, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plans = {}

    def note(plan, save):
        plans[name] = plan
        save({"part": name})

    for name in parts.PARTS:
        monkeypatch.setitem(parts.PARTS, name, note)
        flags = ["--clip", str(setup.clip)] if name == "trace" else []
        assert parts.main([name, *flags, "--results", str(tmp_path / name)]) == 0
        assert json.loads((tmp_path / name).read_text()) == {"part": name}
    published = {"batch_size": 128, "num_frames": 12, "device": "cuda", "precision": "bf16"}
    for name, plan in plans.items():
        assert {key: getattr(plan.setup, key) for key in published} == published
        assert plan.setup.compiled == (name == "compiled")
    assert plans["benchmark"].weighed == plans["benchmark"].subjects == SUBJECTS and not plans["benchmark"].apart
    assert plans["trace"].setup.clip == setup.clip and plans["benchmark"].setup.clip is None


def test_what_a_part_finds_first_is_kept_if_the_rest_fails(setup, monkeypatch, capsys):
    plan, saved = benchmark.make_plan(benchmark.parse_arguments(["--device", "cpu"])), []
    monkeypatch.setattr(benchmark, "benchmark_model", lambda plan: {"encode_ratio.once": 1.1})
    monkeypatch.setattr(benchmark, "benchmark_growth", lambda plan: {}["out of memory"])
    with pytest.raises(KeyError):
        parts.run_benchmark(plan, saved.append)
    assert [found["encode_ratio.once"] for found in saved] == [1.1] and saved[0]["device"] == "cpu"
    monkeypatch.setattr(parts, "ROUNDS_COMPILED", 1)
    parts.run_compiled(replace(plan, setup=setup), saved.append)
    assert {f"train_step_seconds.{FLOOR}", f"train_step_ratio.{PER_LAYER}"} <= saved[1].keys()
    assert f"train_step_tflop.{PER_LAYER}" in saved[2] and "STOP, --prompting per_layer" in capsys.readouterr().out


def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check.main(["--output", str(tmp_path / "runs" / "check.json")]) == 1
    assert "finds no CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(check, "NEEDED", ("torch", "no_such_package"))
    assert check.main([]) == 1
    message = capsys.readouterr().err
    assert "cannot import no_such_package (No module named 'no_such_package'): install requirements.txt" in message


@pytest.mark.parametrize("flags", [["--minutes", "0"], ["--batch_size", "0"], ["--output", "check.txt"]])
def test_flags_that_make_no_sense_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        check.main(flags)
    assert f"{flags[0]} " in capsys.readouterr().err


def test_the_script_takes_the_environment_that_is_there_and_installs_nothing(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "gpu_check.sh", tmp_path / "scripts")

    def interpreter(path, version_is_fine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            f'#!/usr/bin/env bash\nif [ "$1" = -c ]; then exit {int(not version_is_fine)}; fi\necho {path.name} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    def run(python):
        return subprocess.run(
            ["bash", "scripts/gpu_check.sh", "--minutes", "5"],
            cwd=tmp_path,
            env=os.environ | {"PYTHON": python},
            capture_output=True,
            text=True,
        )

    mine = interpreter(tmp_path / "bin" / "mine", True)
    assert run(mine).stdout == "mine scripts/gpu/check.py --minutes 5\n"
    old = run(interpreter(tmp_path / "bin" / "old", False))
    assert old.returncode == 1 and "Python 3.10 or newer is needed" in old.stderr
    interpreter(tmp_path / ".venv" / "bin" / "python", True)
    assert run(mine).stdout == "python scripts/gpu/check.py --minutes 5\n"
    assert not (tmp_path / ".venv" / ".requirements").exists()
