"""The demo from nothing to its tables: made once, read as frames, and what it shows is what STOP is for."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from helpers.paths import ROOT

pytestmark = pytest.mark.slow
FOLDERS = ("common", "dataloaders", "docs", "modules", "preprocess", "scripts", "search")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The program's files without anything that a run left, and this interpreter as its .venv."""
    root = tmp_path_factory.mktemp("checkout")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("*.py"), ROOT / "requirements.txt"):
        shutil.copy(path, root)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    shutil.copy(ROOT / "requirements.txt", root / ".venv" / ".requirements")  # as setup.sh leaves it
    return root


def demo(checkout, *task):
    """Run the demo and return the results of its three runs by their names."""
    finished = subprocess.run(
        ["bash", "scripts/demo.sh", *task],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    folder = checkout / "runs" / ("demo_recognition" if task else "demo")
    results = {name: json.loads((folder / name / "results.json").read_text()) for name in RUNS}
    metric = "top1" if task else "motion_accuracy"
    for value in results.values():
        assert f"{value[metric]:.1f}" in finished.stdout
    assert f"report: {(folder / 'stop' / 'report.html').relative_to(checkout)}" in finished.stdout
    assert "data:image/png" in (folder / "stop" / "report.html").read_text(encoding="utf-8")
    for name in RUNS:
        settings = json.loads((folder / name / "config.json").read_text())["settings"]
        assert settings["packed"] and not settings["features_path"]
    return {name: value[metric] for name, value in results.items()}


RUNS = ("zero_shot", "stop", "stop_shuffled")


def toy_files(checkout):
    """When each file of the toy world was written.

    But for locks, and archives, whose end is written again whenever packing ends.
    """
    files = [path for path in (checkout / "runs" / "toy").rglob("[!.]*.*") if path.suffix not in (".tar", ".csv")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_the_demo_shows_that_stop_reads_time_and_makes_its_world_once(checkout):
    accuracy = demo(checkout)
    # no model that ignores the order of frames can pass 50
    assert accuracy["stop"] > 75 and max(accuracy["zero_shot"], accuracy["stop_shuffled"]) < 50
    made = toy_files(checkout)
    assert {path.name for path in made} > {"dataset.json", "open_clip_model.safetensors", "index.jsonl"}
    accuracy = demo(checkout, "recognition")
    assert accuracy["stop"] > 75 and max(accuracy["zero_shot"], accuracy["stop_shuffled"]) < 50
    assert toy_files(checkout) == made


def test_the_demo_finds_moments_where_the_model_reads_time(checkout):
    if not (checkout / "runs" / "demo" / "stop" / "best.pt").exists():
        demo(checkout)
    finished = subprocess.run(
        ["bash", "scripts/demo.sh", "search"],
        cwd=checkout,
        env=os.environ | {"SEARCH_DEMO_SERVE": "no"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads((checkout / "runs" / "demo_search" / "search_toy.json").read_text())["measured"]
    right = {name: result["right"] for name, result in found.items()}
    assert right["STOP"] > 40 and right["zero-shot, mean pooling"] < 20
    for value in right.values():
        assert f"{value:.1f} % of 432 queries" in finished.stdout
