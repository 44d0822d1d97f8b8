"""Answers by faiss' candidates are the exact ones, whatever has come and gone since the windows were quantised."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest

from common.errors import UserError
from helpers.search.index import JPEG, SETTINGS, WIDTH, embed_texts, vector
from scripts.moments import scale
from search import quantised, queries, scoring
from search.__main__ import main
from search.quantised import quantise
from search.queries import Query, Searcher
from search.settings import JudgeSettings
from search.store import DATABASE, Part, Stamp, open_for_writing

WINDOWS = 600  # of a video


def made(name):
    """A long video in which the window at second s shows just what "NAME s" says, as far as there is room for it."""
    near = np.stack([vector(f"{name} {start}") for start in range(WINDOWS)])
    return Part(WINDOWS + 1.0, [(start, start + 2.0) for start in range(WINDOWS)], near, [JPEG] * WINDOWS)


@pytest.fixture
def index_dir(tmp_path):
    folder = tmp_path / "index"
    with open_for_writing(folder, SETTINGS) as store:
        for name in ("a", "b", "c"):
            store.add(f"/videos/{name}/x.mp4", f"videos/{name}/x.mp4", Stamp(1, 1), made(name))
    return folder


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """So few candidates that most windows are none."""
    for module in (scoring, queries):
        monkeypatch.setattr(module, "CANDIDATES", 10)
        monkeypatch.setattr(module, "MIN_CANDIDATES", 60)
    monkeypatch.setattr(queries, "FEW", 10)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss is not installed: requirements-scale.txt")


def answers(index_dir, index, **query):
    searcher = Searcher(index_dir, embed_texts, JudgeSettings(threshold=-100), index)
    answer = searcher.answer(Query(top=3, all=True, **query))
    searcher.store.close()
    return answer["excess"], answer["moments"], answer["considered"]


QUERIES = {
    "text": {"text": "a 17"},
    "not": {"text": "b 500", "unlike": "b 20"},
    "like": {"like": 700},
    "both": {"text": "c 3", "like": 5},
    "folder": {"text": "a 17", "folder": "videos/c"},
}


@pytest.mark.parametrize("name", QUERIES)
def test_the_answers_are_the_exact_ones(faiss, index_dir, name):
    assert "1,800 windows are quantised" in quantise(index_dir)
    exact, by_faiss = (answers(index_dir, index, **QUERIES[name]) for index in ("exact", "faiss"))
    assert by_faiss == exact and len(exact[1]) == 3


def test_a_query_looks_at_few_windows_exactly(faiss, index_dir, monkeypatch):
    quantise(index_dir)
    looked, real = [], queries.similarities
    monkeypatch.setattr(queries, "similarities", lambda e, rows, q: (looked.append(len(rows)), real(e, rows, q))[1])
    answers(index_dir, "faiss", text="a 17")
    assert looked[-1] <= 60 * (2 * quantised.NEIGHBOURS + 1)


def test_a_folder_that_is_unlike_the_query_is_not_empty(faiss, tmp_path):
    """None of the candidates is in it."""
    index_dir = tmp_path / "index"
    with open_for_writing(index_dir, SETTINGS) as store:
        for name in ("a", "b"):
            part = made(name)
            side = vector(name) if name == "a" else -vector("a")
            near = side + 0.5 * part.embeddings
            part = replace(part, embeddings=near / np.linalg.norm(near, axis=1, keepdims=True))
            store.add(f"/videos/{name}/x.mp4", f"videos/{name}/x.mp4", Stamp(1, 1), part)
    quantise(index_dir)
    exact, by_faiss = (answers(index_dir, index, text="a", folder="videos/b") for index in ("exact", "faiss"))
    assert by_faiss == exact and len(exact[1]) == 3


def test_what_came_is_found_and_what_went_is_not(faiss, index_dir):
    quantise(index_dir)
    with open_for_writing(index_dir, SETTINGS) as store:
        store.remove(["/videos/a/x.mp4"])
        store.add("/videos/d/x.mp4", "videos/d/x.mp4", Stamp(1, 1), made("d"))
    for text, file in (("d 5", "videos/d/x.mp4"), ("b 5", "videos/b/x.mp4")):
        exact, by_faiss = (answers(index_dir, index, text=text)[1] for index in ("exact", "faiss"))
        assert by_faiss == exact and exact[0]["file"] == file
    assert not any(moment["file"] == "videos/a/x.mp4" for moment in answers(index_dir, "faiss", text="a 5")[1])


def test_it_is_made_again_where_much_has_come_and_files_of_former_numbers_go(faiss, index_dir):
    quantise(index_dir)
    first = index_dir / "quantised-0.faiss"
    made_at = first.stat().st_mtime_ns
    assert "all but the newest" in quantise(index_dir) and first.stat().st_mtime_ns == made_at
    with open_for_writing(index_dir, SETTINGS) as store:
        store.add("/videos/d/x.mp4", "videos/d/x.mp4", Stamp(1, 1), made("d"))
    assert "2,400 windows are quantised" in quantise(index_dir)
    searcher = Searcher(index_dir, embed_texts, JudgeSettings(threshold=-100), "faiss")
    with open_for_writing(index_dir, SETTINGS) as store:
        store.remove(["/videos/a/x.mp4", "/videos/b/x.mp4"])
        store.tidy()
    assert not first.exists()
    assert searcher.answer(Query("d 7", top=1))["moments"][0]["from"] == 7.0  # exactly, while there is none
    with pytest.raises(UserError, match="has not been quantised"):
        Searcher(index_dir, embed_texts, JudgeSettings(), "faiss")
    assert "1,200 windows" in quantise(index_dir) and (index_dir / "quantised-1.faiss").exists()


def test_few_windows_are_compared_exactly(faiss, tmp_path):
    with open_for_writing(tmp_path / "index", SETTINGS) as store:
        store.add("/videos/a.mp4", "videos/a.mp4", Stamp(1, 1), made("a"))
    assert "600 windows are compared exactly" in quantise(tmp_path / "index")
    assert answers(tmp_path / "index", "faiss", text="a 3")[1][0]["from"] == 3.0


def test_a_file_that_faiss_cannot_read_is_named_and_made_anew(faiss, index_dir, capsys):
    quantise(index_dir)
    (index_dir / "quantised-0.faiss").write_bytes(b"not that")
    with pytest.raises(UserError, match=r"quantised-0\.faiss cannot be read"):
        Searcher(index_dir, embed_texts, JudgeSettings(), "faiss")
    assert main(["verify", "--index_dir", str(index_dir)]) == 1
    assert "quantised-0.faiss cannot be read" in capsys.readouterr().out
    assert "1,800 windows are quantised" in quantise(index_dir)
    assert main(["verify", "--index_dir", str(index_dir)]) == 0


def test_a_file_of_an_index_whose_database_is_gone_is_not_taken_for_the_new_ones(faiss, index_dir):
    quantise(index_dir)
    (index_dir / DATABASE).unlink()
    with open_for_writing(index_dir, SETTINGS):
        assert not list(index_dir.glob("quantised-*"))


def test_without_faiss_it_is_said_how_to_get_it(index_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-scale\.txt"):
        quantise(index_dir)


@pytest.mark.slow
def test_the_scale_is_measured_with_texts_as_queries(faiss, tmp_path):
    draw = np.random.default_rng(0)
    texts, videos = draw.normal(size=(40, WIDTH)), draw.normal(size=(50, WIDTH))
    np.save(tmp_path / "matrix.npy", texts @ videos.T)
    world = scale.World(tmp_path / "matrix.npy")
    found = world.texts @ world.videos.T
    np.testing.assert_allclose(found * 100, texts @ videos.T, atol=1e-3)  # the products are the matrix
    record = tmp_path / "scale.json"
    flags = ["--quick", "--similarities", str(tmp_path / "matrix.npy"), "--record", str(record)]
    assert scale.main(flags) == 0
    results = json.loads(record.read_text())
    row = results["measured"]["sizes"]["3000"]
    assert row["recall"]["texts"]["2000"] == 100 and row["same_answers"] == 100 and row["exact_mb"] > 0
    assert "| 3,000 | texts |" in scale.recall_table(results) and "exact: text, ms" in scale.table(results)
