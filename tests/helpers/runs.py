"""The retrieval program run in this process, and what runs of any program leave in their folders."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

import main_task_retrieval


def run(flags: list[str], output_dir: Path, *more: str) -> int:
    """Run the retrieval program in this process and return its exit status."""
    return main_task_retrieval.main([*flags, "--output_dir", str(output_dir), *more])


def results(folder: Path) -> dict[str, Any]:
    """What a run has found in the end."""
    return json.loads((folder / "results.json").read_text())


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of a kind, "train" or "eval", in a run's metrics."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["kind"] == kind]


def logged_steps(folder: Path) -> list[int]:
    """The steps of all lines in the metrics of a run, which may not have begun, or be writing one just now."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a header."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checkpoint(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    """What a checkpoint holds."""
    return torch.load(folder / name, weights_only=True)


def state_of(folder: Path, name: str = "last.pt") -> dict[str, Any]:
    """What a checkpoint holds but for the seconds, in which no two runs are equal."""
    content = checkpoint(folder, name)
    del content["position"]["seconds"]
    return content


def first_difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """The place at which two nested structures do not hold the same bits, or None if they do."""
    if type(ours) is not type(theirs):
        return where or "/"
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return where or "/"
        pairs = [(key, ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            return where or "/"
        pairs = [(number, *pair) for number, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
        return None if same else where or "/"
    return next(filter(None, (first_difference(*pair, f"{where}/{key}") for key, *pair in pairs)), None)


def assert_equal(ours: Any, theirs: Any) -> None:
    """Two nested structures hold the same bits."""
    place = first_difference(ours, theirs)
    assert place is None, f"{place} differs"
