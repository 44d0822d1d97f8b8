"""The small programs that measure for the documentation: what they compare, and the tables they make."""

import json

import pytest
import torch

from dataloaders.datasets import RECOGNITION, RETRIEVAL
from helpers.paths import ROOT
from helpers.tiny import make_tiny_clip
from scripts import docs_tables, gradient_precision, measure_reading, show_decay


def test_the_precision_is_measured_for_both_scopes_and_choices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gradient_precision, "toy_sized_clip", make_tiny_clip)
    monkeypatch.setattr(gradient_precision, "DTYPES", {"bf16": gradient_precision.DTYPES["bf16"]})
    content = gradient_precision.measure(seeds=(0,))
    assert {(row["scope"], row["choices"]) for row in content["rows"]} == {
        (scope, choices) for scope in ("joint", "frame") for choices in ("fixed", "free")
    }
    assert all(0.9 < row["smallest"] <= row["median"] <= 1 for row in content["rows"])
    for scope, kept in content["kept_in_fp32"].items():
        fixed = next(row for row in content["rows"] if (row["scope"], row["choices"]) == (scope, "fixed"))
        assert kept["nothing"]["median"] == fixed["median"]  # the same again
        assert all(0.9 < of["smallest"] <= 1 for of in kept.values())
        assert kept["both"]["median"] != kept["nothing"]["median"]
    record = tmp_path / "precision.json"
    record.write_text(json.dumps(content))
    gradient_precision.main(["--table", "--record", str(record)])
    cell = f"{content['rows'][0]['median']:.4f} (least {content['rows'][0]['smallest']:.4f})"
    assert f"| bf16, joint | {cell} |" in capsys.readouterr().out


def test_what_is_kept_in_fp32_computes_in_it_whatever_comes_to_it():
    layer, values = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with gradient_precision.in_fp32([(layer, "forward")]):
            kept = layer(values.bfloat16())
        assert kept.dtype == torch.float32 and layer(values).dtype == torch.bfloat16
    torch.testing.assert_close(kept, layer(values.bfloat16().float()))


def test_the_decay_table_has_steps_from_the_first_to_the_last(tmp_path, capsys):
    of_run = {"tokens_per_gap": [4 - 0.1 * step for step in range(13)], "squared_norm": [1.0] * 13}
    record = tmp_path / "decay.json"
    record.write_text(json.dumps({"before": of_run, "after": of_run}))
    show_decay.main(["--table", "--record", str(record)])
    out = capsys.readouterr().out
    assert "| at step | 1 | 3 | 5 | 7 | 9 | 11 | 13 |" in out
    assert "tokens a gap | 4.00 | 3.80 | 3.60 | 3.40 | 3.20 | 3.00 | 2.80 |" in out


@pytest.mark.slow
def test_the_gate_is_counted_in_a_training_of_any_code(tiny_files, tmp_path, monkeypatch):
    flags = [flag if flag != "8" else "4" for flag in show_decay.FLAGS]
    flags[flags.index("--batch_size") + 1] = "6"
    flags[flags.index("--epochs") + 1] = "1"
    flags[flags.index("--max_words") + 1] = "12"
    monkeypatch.setattr(show_decay, "FLAGS", flags)
    monkeypatch.setattr(show_decay, "NUM_LAYERS", 3)
    found = show_decay.gate_of(ROOT, tiny_files)
    assert len(found["tokens_per_gap"]) == 22 // 6 == len(found["squared_norm"])
    assert all(0 < tokens <= 4 for tokens in found["tokens_per_gap"]) and found["squared_norm"][0] == 1


def test_every_datasets_lists_were_read_at_their_published_size():
    rows = json.loads(measure_reading.RECORD.read_text())["datasets"]
    assert set(rows) == set(measure_reading.MAKERS) == set(RETRIEVAL) | set(RECOGNITION)
    counts = {
        name: tuple(row[f"{part}_{of}"] for part in ("training", "evaluation") for of in ("samples", "videos"))
        for name, row in rows.items()
    }
    assert counts["msrvtt"] == (180_000, 9_000, 1_000, 1_000)
    assert counts["vatex"] == (259_910, 25_991, 15_000, 1_500)
    assert counts["activity"] == (10_009, 10_009, 4_917, 4_917)
    assert counts["msvd"][:2] == (48_774, 1_200) and counts["msvd"][3] == 670
    assert counts["lsmdc"][2:] == (1_000, 1_000)
    assert (counts["hmdb51"], counts["ucf101"]) == ((3_570, 3_570, 1_530, 1_530), (9_537, 9_537, 3_783, 3_783))
    assert rows["msrvtt"]["seconds"] < 10


@pytest.mark.slow
def test_lists_are_read_in_a_process_of_their_own(tmp_path, capsys):
    record = tmp_path / "reading.json"
    measure_reading.main(["--datatype", "msvd", "--record", str(record)])
    row = json.loads(record.read_text())["datasets"]["msvd"]
    assert (row["training_samples"], row["training_videos"], row["evaluation_videos"]) == (48_774, 1_200, 670)
    assert row["seconds"] > 0 and row["memory_mb"] > row["memory_before_mb"] > 0
    assert "| `msvd` | 48,774 of 1,200 | 26,800 of 670 |" in capsys.readouterr().out


def test_tables_are_put_between_their_marks(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_tables, "TABLES", {"one": ("one.json", lambda content: f"| {content['n']} |")})
    (tmp_path / "one.json").write_text('{"n": 7}')
    page = "before\n<!-- table: one -->\nold\nlines\n<!-- end of one -->\nbehind\n"
    expected = "before\n<!-- table: one -->\n| 7 |\n<!-- end of one -->\nbehind\n"
    assert docs_tables.filled(page, tmp_path) == expected
    assert docs_tables.filled(expected, tmp_path) == expected
    two = (("one.json", "two.json"), lambda one, two: f"| {one['n']} | {two and two['n']} |")
    monkeypatch.setitem(docs_tables.TABLES, "one", two)
    assert "| 7 | None |" in docs_tables.filled(page, tmp_path)
    (tmp_path / "two.json").write_text('{"n": 8}')
    assert "| 7 | 8 |" in docs_tables.filled(page, tmp_path)
    with pytest.raises(KeyError, match="other"):
        docs_tables.filled(page.replace("one -->", "other -->"), tmp_path)
