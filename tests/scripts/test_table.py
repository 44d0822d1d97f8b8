"""The papers' tables: what was published is as printed; what was reproduced stands beside it, not in its place."""

import csv
import io
import json
import re

import pytest

from helpers.paths import ROOT, shared_data
from modules.methods import METHODS
from scripts.table import FORMATS, TABLES, Table, main

KEYS = [f"{way}_{name}" for way in ("t2v", "v2t") for name in ("R1", "R5", "R10", "MnR")]
OF_NO_TABLE = {"zero_shot", "lora", "stpn"}  # STPN's tables are of other tasks
RESULTS = {"dataset": "msrvtt", "method": "stop", "trainable_parameters": 2_066_756} | {
    **dict(zip(KEYS, (46.9, 71.4, 81.25, 15.0, 46.1, 70.0, 80.0, 12.0), strict=True)),
    **{"clip": "ViT-B/32", "max_frames": 12, "texts": 1000, "videos": 1000, "dropped_videos": 0},
}
SETTINGS = {"num_regions": 6, "eta": 4.0, "ablate": "none", "eval_frame_order": "ordered"}


@pytest.fixture
def make_run(tmp_path):
    def make(name, settings=None, **results):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results.json").write_text(json.dumps(RESULTS | results))
        if settings is not None:
            (folder / "config.json").write_text(json.dumps({"settings": settings}))
        return str(folder)

    return make


def shown(capsys, *flags):
    """The table as rows of cells by heading."""
    assert main([*flags, "--format", "csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def numbers(row, part):
    return [value for name, value in row.items() if name.endswith(f" {part}")]


def test_what_was_published_for_retrieval_is_as_printed():
    printed = {}
    for line in shared_data("../TABLES.md").read_text().splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip("|").split("|")]
        if len(cells) == 11 and set(cells[0]) != {"-"}:
            printed[cells[0]] = cells[1:]
    del printed["method"]
    table = Table.read("retrieval")
    assert [column.key for column in table.columns] == ["trainable_parameters", *KEYS]
    rows = {row["name"]: [*row["texts"], *(row["values"].get(c.key, "") for c in table.columns)] for row in table.rows}
    assert [*rows.pop("TempMe")[1:]] == ["", "46.1", *[""] * 7]  # of its own paper
    assert rows == printed


@pytest.mark.parametrize("name", ["detection", "segmentation", "tracking"])
def test_what_was_published_of_stpn_is_as_printed(name):
    (source,) = shared_data("../seeds").glob("003_*.txt")
    lines = [[re.sub(r" ?\[\d+\]| _|[{}()* ]", "", cell) for cell in line.split("\t")] for line in source.open()]
    table = Table.read(name)
    for row in table.rows:
        cells = [row["name"], *row["texts"], *(row["values"].get(column.key, "-") for column in table.columns)]
        assert [re.sub(r"[() ]", "", cell) for cell in cells] in [[c.strip() for c in line] for line in lines], cells


def test_what_was_published_of_stpns_choices_is_as_printed():
    (source,) = shared_data("../seeds").glob("003_*.txt")
    values, printed = [], {}
    for line in source.read_text().splitlines():
        cells = line.split("\t")
        if re.fullmatch(r"\([abc]\)", cells[0]):
            values = [f"{cells[1]} = {value}" for value in cells[2:]]
        elif cells[0] == "" and cells[1:2] in (["AP"], ["FPS"]):
            for name, number in zip(values, cells[2:], strict=True):
                printed.setdefault(name, {})[cells[1]] = number
    assert {row["name"]: row["values"] for row in Table.read("prompts").rows} == printed


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_where_it_is_from_and_every_row_whether_it_can_be_reproduced(name, capsys):
    rows = shown(capsys, "--table", name)
    assert len(rows) == len(Table.read(name).rows)
    assert all(row["source"] for row in rows)
    assert not any(any(numbers(row, "ours") + numbers(row, "difference")) for row in rows)
    for row in rows:
        assert row["notes"].startswith("quoted") == row["method"].startswith("MPT")


def test_every_method_has_its_row():
    rows = Table.read("retrieval").rows
    named = [row["method"] for row in rows if "method" in row]
    assert len(set(named)) == len(named) and METHODS.keys() - OF_NO_TABLE <= set(named)
    assert [row["name"] for row in rows if "method" not in row] == ["MPT-Linear", "MPT-Transformer"]


def test_a_run_stands_beside_what_was_published_with_the_difference(make_run, capsys):
    rows = {row["method"]: row for row in shown(capsys, make_run("ours", SETTINGS))}
    stop = rows.pop("STOP")
    cells = [stop[f"t→v R@1 {part}"] for part in ("published", "ours", "difference")]
    assert cells == ["47.7", "46.9", "-0.8"]
    assert [stop[f"Params {part}"] for part in ("published", "ours", "difference")] == ["7.53", "2.07", "-5.46"]
    assert stop["t→v R@10 ours"] == "81.2" and stop["t→v R@5 difference"] == "+0.0"
    assert stop["run"].endswith("ours") and stop["notes"] == ""
    for row in rows.values():
        assert row["run"] == "" and not any(numbers(row, "ours") + numbers(row, "difference"))


def test_each_run_of_a_method_has_a_line_and_what_reproduces_no_row_one_of_its_own(make_run, capsys):
    runs = [
        make_run("first", SETTINGS),
        make_run("second", SETTINGS, t2v_R1=48.0),
        make_run("other", {"sim_header": "seqTransf"}, method="clip4clip"),
        make_run("frozen", {"merge_frames": ""}, method="zero_shot"),
        make_run("half", SETTINGS | {"ablate": "intra", "num_regions": 0}),
        make_run("older", {"num_regions": 6, "eta": 0.0}),  # from before --ablate
    ]
    rows = shown(capsys, *runs)
    stop = [row for row in rows if row["method"] == "STOP"]
    assert [row["t→v R@1 difference"] for row in stop] == ["-0.8", "+0.3"]
    own = rows[len(Table.read("retrieval").rows) + 1 :]
    names = ["CLIP4Clip with sim_header seqTransf", "zero_shot", "STOP with ablate intra", "STOP with ablate inter"]
    assert [row["method"] for row in own] == names
    for row in own:
        assert row["t→v R@1 ours"] == "46.9" and row["source"] == ""
        assert not any(numbers(row, "published") + numbers(row, "difference"))


@pytest.mark.parametrize(
    ("method", "variant"),
    [
        ("stop", {"selection": "random"}),
        ("stop", {"token_count": "constant"}),
        ("stop", {"attention_scope": "frame"}),
        ("stop", {"prompting": "once"}),
        ("stop", {"prompt_layers": "0,4"}),
        ("stop", {"dynamics_input": "differences"}),
        ("stop", {"merge_frames": "4,8"}),
        ("vpt", {"frame_prompts": 54}),
        ("bias", {"merge_frames": "4,8"}),
    ],
)
def test_a_variant_of_a_method_stands_as_no_reproduction_of_its_row(make_run, capsys, method, variant):
    rows = shown(
        capsys, make_run("plain", SETTINGS, method=method), make_run("other", SETTINGS | variant, method=method)
    )
    (plain,), (other,) = ([row for row in rows if row["run"].endswith(name)] for name in ("plain", "other"))
    ((name, value),) = variant.items()
    assert other["method"] == f"{plain['method']} with {name} {value}"
    assert any(numbers(plain, "difference")) and not any(numbers(other, "published") + numbers(other, "difference"))


def test_what_a_row_asks_of_its_run_are_defaults_of_its_method():
    table = Table.read("retrieval")
    for row in table.rows:
        for name, value in {**table.settings, **row.get("settings", {})}.items() if "method" in row else ():
            assert getattr(METHODS[row["method"]].settings(), name, value) == value, (row["name"], name)
        for name in row.get("settings", {}):
            assert hasattr(METHODS[row["method"]].settings(), name), (row["name"], name)


@pytest.mark.parametrize(
    ("settings", "results", "note"),
    [
        ({}, {"dropped_videos": 3, "videos": 997, "texts": 997}, "thinned test set: 3 videos were left out"),
        (
            {},
            {"missing_videos": 9, "videos": 997, "texts": 997, "thinned": {"videos": 997, "listed": 1000}},
            "thinned test set: 997 of 1,000 videos",
        ),
        ({}, {"protocol": {"v2t_ranks": "captions"}}, "v→t ranks among captions, published among videos"),
        ({}, {"protocol": {"v2t_ranks": "videos"}}, ""),
        ({}, {"texts": 432, "videos": 432}, "another test set: 432 texts and 432 videos, published 1000 and 1000"),
        ({}, {"clip": "/weights/ViT-B-16.pt"}, "another CLIP: ViT-B-16.pt, published ViT-B/32"),
        ({}, {"max_frames": 8}, "8 frames a video, published 12"),
        ({"eval_frame_order": "shuffle"}, {}, "frames in another order than the video's"),
        (None, {}, "has no config.json, which says with what settings"),
        ({}, {"clip": "/weights/ViT-B-32.pt"}, ""),
    ],
)
def test_another_measurement_is_marked_and_not_compared(make_run, capsys, settings, results, note):
    run = make_run("ours", None if settings is None else SETTINGS | settings, **results)
    (row,) = (row for row in shown(capsys, run) if row["run"])
    assert row["method"] == "STOP" and row["notes"] == note
    assert row["t→v R@1 ours"] == "46.9" and row["t→v R@1 difference"] == ("" if note else "-0.8")
    assert main([run]) == 0
    assert (f"] {note}." in capsys.readouterr().out) == bool(note)


@pytest.mark.parametrize("form", FORMATS)
def test_a_thinned_test_set_is_marked_in_every_form(make_run, capsys, form):
    thinned = {"thinned": {"videos": 997, "listed": 1000}, "videos": 997, "texts": 997}
    assert main([make_run("whole", SETTINGS), make_run("fewer", SETTINGS, **thinned), "--format", form]) == 0
    lines = capsys.readouterr().out.splitlines()
    (whole,), (fewer,) = ([line for line in lines if f"/{name}" in line] for name in ("whole", "fewer"))
    note, mark = "thinned test set: 997 of 1,000 videos", {"markdown": "STOP [2] ", "latex": "STOP$^{2}$", "csv": ""}
    assert mark[form] in fewer and (not mark[form] or mark[form] not in whole)
    (said,) = (line for line in lines if note in line)
    assert (said == fewer) == (form == "csv") and said != whole


def test_what_cannot_stand_in_a_table_is_said_of_all_runs_at_once(make_run, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("{")
    bad = {
        "begun has no results.json: give the --output_dir of a run that has finished": tmp_path / "begun",
        "results.json cannot be read": tmp_path / "damaged",
        "actions was evaluated on hmdb51, this table is of msrvtt": make_run("actions", dataset="hmdb51"),
        "does not say t2v_R1, v2t_MnR: it is no results.json": make_run("half", t2v_R1=None, v2t_MnR="12"),
    }
    good = make_run("ours", SETTINGS)
    assert main([good, *map(str, bad.values())]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == len(bad)
    for message, line in zip(bad, printed.err.splitlines(), strict=True):
        assert message in line
    assert main([good, "--table", "tracking"]) == 1
    assert "no run evaluates this table's task, Visual object tracking on GOT-10k" in capsys.readouterr().err


@pytest.mark.parametrize("table", TABLES)
def test_all_forms_say_the_same(make_run, capsys, table):
    runs = [make_run("my_run & 1", SETTINGS), make_run("a|b 100%", SETTINGS, dropped_videos=2)]
    flags = [*(runs if table == "retrieval" else []), "--table", table]
    printed = {}
    for name in FORMATS:
        assert main([*flags, "--format", name]) == 0
        printed[name] = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(printed["csv"])))
    expected = [[value for name, value in row.items() if name not in ("source", "notes")] for row in rows]
    lines = [line for line in printed["markdown"].splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip().replace("\\", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert [[re.sub(r" \[\d\]$", "", row[0]), *row[1:]] for row in cells] == [
        [re.sub(r"^-(?=\d)", "−", cell) for cell in row] for row in expected
    ]
    body = printed["latex"].split("\\hline\n")[2]
    cells = [re.split(r"(?<!\\)&", line.removesuffix(" \\\\")) for line in body.splitlines()]
    assert [[re.sub(r"\$\^\{\d\}\$|[\\$]", "", cell).strip() for cell in row] for row in cells] == expected


def test_a_run_of_this_program_can_be_read(tmp_path, capsys):
    measured = json.loads((ROOT / "docs" / "results" / "demo_retrieval.json").read_text())
    for number, run in enumerate(measured.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "results.json").write_text(json.dumps(run["results"]))
        (tmp_path / str(number) / "config.json").write_text(json.dumps({"settings": run["settings"]}))
    rows = shown(capsys, *(str(tmp_path / str(number)) for number in range(len(measured))))
    own = [row for row in rows if row["run"]]
    assert len(own) == len(measured) and all("another test set: 432" in row["notes"] for row in own)
