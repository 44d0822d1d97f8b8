"""`scripts/report.py`: one file that holds what runs found, and that a browser shows whole."""

import json
import re
import shutil

import pytest

from helpers.drawing.browser import browser, errors_of, resize
from helpers.runs import run
from helpers.tiny import TINY_TRAINING
from modules.report.curves import PANELS, panels_of, read_metrics
from modules.report.html import page, table
from scripts import report


@pytest.fixture(scope="module")
def folders(tiny_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    trained, frozen = root / "trained", root / "frozen"
    assert run(tiny_run, trained, *TINY_TRAINING, "--epochs", "1") == 0
    assert run(tiny_run, frozen, "--do_eval", "--method", "zero_shot") == 0
    return trained, frozen


@pytest.fixture(scope="module")
def written(folders):
    """The report of both runs, with a test video."""
    report.main([*map(str, folders), "--videos", "1"])
    return folders[0] / report.REPORT


def test_it_holds_what_the_runs_found_and_asks_for_nothing_else(folders, written):
    text = written.read_text(encoding="utf-8")
    assert not re.search(r'<script|<link rel="stylesheet|(src|href|srcset)="(?!data:)', text)
    for folder in folders:
        results = json.loads((folder / "results.json").read_text())
        assert f'<td class="number">{results["t2v_R1"]:.2f}</td>' in text
    assert "<td>method</td><td>stop</td><td>zero_shot</td>" in text
    assert "<td>do_train</td><td>true</td><td>false</td>" in text
    logged = {key for entry in read_metrics(folders[0] / "metrics.jsonl") for key in entry}
    for panel in PANELS:
        assert (f'alt="{panel.title} over the steps' in text) == bool(logged & set(panel.keys)), panel.title
    for shown in ("Attention of", "Patches of", "What changes in"):
        assert f'alt="{shown}' in text
    assert text.count("<picture>") == 3


def test_published_numbers_stand_beside_those_of_another_measurement_with_a_note(folders, written):
    text = written.read_text(encoding="utf-8")
    assert '<td>text→video R@1</td><td class="number">47.7</td>' in text
    assert "These numbers are not of this code." in text and "another test set: 6 texts" in text


def test_a_run_under_way_has_its_curves_and_a_folder_without_a_run_is_refused(folders, tmp_path, capsys):
    under_way = tmp_path / "under_way"
    shutil.copytree(folders[0], under_way)
    (under_way / "results.json").unlink()
    with (under_way / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # cut off
    report.main([str(under_way), "--output", str(tmp_path / "a" / "b.html")])
    text = (tmp_path / "a" / "b.html").read_text(encoding="utf-8")
    assert "not finished" in text and "No run has finished yet." in text and 'alt="Loss' in text
    with pytest.raises(SystemExit, match=r"is not the folder of a run: it holds no config\.json"):
        report.main([str(tmp_path)])
    (tmp_path / "split1").symlink_to(under_way)
    with pytest.raises(SystemExit, match=r"holds a run for each of 1 splits: give one, such as .*split1"):
        report.main([str(tmp_path)])
    (under_way / "config.json").write_text("{")
    with pytest.raises(SystemExit, match=r"config\.json or results\.json is damaged"):
        report.main([str(under_way)])


def test_what_cannot_be_shown_is_said_in_its_place(folders, tmp_path):
    report.main([str(folders[0]), "--output", str(tmp_path / "r.html"), "--features_path", str(tmp_path / "none")])
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Videos cannot be shown: " in text and "What goes wrong cannot be shown: " in text
    report.main([str(folders[0]), "--output", str(tmp_path / "r.html"), "--videos", "0"])
    assert "Test videos" not in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_text_is_text():
    assert "<b>" not in page("a <b>", table(["<b>"], [["<b>"]]))


def test_curves_of_several_runs_are_told_apart_without_colour():
    entries = [{"kind": "train", "step": step, "loss": 1.0 / step} for step in range(1, 40)]
    ((_, figure),) = panels_of({"one": entries, "two": entries, "three": entries})
    lines = figure.axes[0].get_lines()
    assert len({line.get_linestyle() for line in lines}) == len(lines) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two", "three"]


SEEN = """
return {
  missing: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.alt),
  wide: document.documentElement.scrollWidth,
  cut: [...document.querySelectorAll('h1, h2, p, td, th, summary, .curves img')]
    .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.textContent),
  hidden: [...document.querySelectorAll('td, th, p')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent),
};
"""


@pytest.mark.slow
def test_a_browser_shows_it_whole_on_a_phone_and_on_a_screen(written):
    with browser() as opened:
        for width in (360, 1280):
            resize(opened, width, 800)
            opened.get(written.as_uri())
            opened.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            seen = opened.execute_script(SEEN)
            assert seen.pop("wide") <= width
            assert seen == {"missing": [], "cut": [], "hidden": []}, width
        assert errors_of(opened) == []
