"""The examples of docs/extending.md, run as they stand there."""

import csv
import re
import sys

import pytest

from dataloaders.datasets import RETRIEVAL
from helpers.flags import path_of, without
from helpers.paths import ROOT
from helpers.runs import lines, results, rows_of, run
from modules.methods import METHODS


def example(section, tmp_path, monkeypatch):
    """The Python of a section, imported from a file of its own."""
    page = (ROOT / "docs" / "extending.md").read_text()
    code = re.search(rf"## {section}\n.*?```python\n(.*?)```", page, re.DOTALL)[1]
    own = [line for line in code.splitlines() if line.strip() and not re.match(r"(from|import) ", line)]
    assert len(own) <= 15
    name = f"example_{section.replace(' ', '_').lower()}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return __import__(name)


def test_a_method(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "example", example("A method", tmp_path, monkeypatch).METHOD)
    flags = ["--do_train", "--method", "example", "--num_tokens", "2", "--epochs", "2", "--batch_size", "6"]
    assert run(tiny_run, tmp_path / "train", *flags, "--n_display", "1") == 0
    rates = [entry["lr"] for entry in lines(tmp_path / "train", "train")]
    assert max(rates) == pytest.approx(1e-2)  # of its recipe
    assert results(tmp_path / "train")["trainable_parameters"] == 3 * 2 * 32
    evaluation = ["--do_eval", "--init_model", str(tmp_path / "train" / "best.pt")]
    assert run(tiny_run, tmp_path / "eval", *evaluation) == 0


def test_a_dataset(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RETRIEVAL, "pairs", example("A dataset", tmp_path, monkeypatch).DATASET)
    for name, flag in (("test", "--val_csv"), ("train", "--val_csv")):
        rows = [[row["key"], row["video_id"], row["sentence"]] for row in rows_of(path_of(tiny_run, flag))]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["pair", "video_id", "text"], *rows])
    flags = without(tiny_run, "--val_csv", "--train_csv", "--data_path")
    files = ["--training_pairs", str(tmp_path / "train.csv"), "--evaluation_pairs", str(tmp_path / "test.csv")]
    flags += ["--datatype", "pairs", "--method", "zero_shot", "--do_eval", *files]
    assert run(flags, tmp_path / "out") == 0
    assert results(tmp_path / "out")["texts"] == 6
    with (tmp_path / "test.csv").open("a") as file:
        file.write("one more,nowhere,\n")
    assert run(flags, tmp_path / "again") == 1
    message = capsys.readouterr().err
    assert "empty text" in message and "nowhere" in message and "--on_bad_eval_video drop" in message
