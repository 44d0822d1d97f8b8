"""Evaluation with several captions a video: both conventions, what they say of themselves, and ranks.csv."""

import json

import numpy as np
import pytest

from common.settings import former_settings
from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.samples import Sample
from helpers.runs import results, rows_of, run
from helpers.tiny import TINY_TRAINING
from main_task_retrieval import RetrievalSettings
from modules.runtime.identity import list_differences
from modules.tasks.retrieval import RetrievalTask

CAPTIONS = {0: ["growing", "to the left"], 3: ["shrinking", "a cross", "to the right"]}  # more of two videos


@pytest.fixture
def several(tiny_files, tmp_path):
    """A test list of 6 videos and 11 captions, those of a video not next to each other; 2 sets, if they are used."""
    pairs = [(row["video_id"], row["sentence"]) for row in rows_of(tiny_files / "dataset" / "test.csv")]
    more = [(pairs[video][0], text) for video, texts in CAPTIONS.items() for text in texts]
    listed = [(video, text, "ab"[video == pairs[0][0]]) for video, text in [*more[::2], *pairs, *more[1::2]]]

    def write(name, columns=3):
        lines = [
            ",".join([f"ret{number}", f"msr{number}", row[0], f'"{row[1]}"', *row[2:columns]])
            for number, row in enumerate(listed)
        ]
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["key,vid_key,video_id,sentence" + ",set" * (columns > 2), *lines]) + "\n")
        return str(path)

    return write


@pytest.fixture
def evaluate(tiny_run, tmp_path):
    def evaluated(name, *flags):
        more = ["--do_eval", "--method", "zero_shot", *flags, "--save_features", str(tmp_path / name / "features")]
        assert run(tiny_run, tmp_path / name, *more) == 0
        return results(tmp_path / name), tmp_path / name

    return evaluated


def slow_ranks(folder, v2t_ranks):
    """The ranks of a run's saved embeddings, a query and a candidate at a time; by query."""
    ids = {name: (folder / "features" / f"{name}.txt").read_text().split() for name in ("text_ids", "video_ids")}
    keys = [f"ret{number}" for number in range(len(ids["text_ids"]))]
    assert ids["text_ids"] == keys
    text, video = (np.load(folder / "features" / f"{name}.npy") for name in ("text", "video"))
    similarity = (text @ video.T).tolist()
    listed = rows_of(next(folder.parent.glob("list*.csv")))
    of = [ids["video_ids"].index(row["video_id"]) for row in listed]
    found = {}

    def rank(right, wrong):
        return 1 + sum(value > right for value in wrong) + sum(value == right for value in wrong) / 2

    for i, values in enumerate(similarity):
        found["t2v", keys[i]] = rank(values[of[i]], [value for j, value in enumerate(values) if j != of[i]])
    for j, name in enumerate(ids["video_ids"]):
        groups = [[similarity[i][j] for i in range(len(of)) if of[i] == k] for k in range(len(ids["video_ids"]))]
        right = max(groups.pop(j))
        wrong = map(max, groups) if v2t_ranks == "videos" else (value for group in groups for value in group)
        found["v2t", name] = rank(right, list(wrong))
    return found


@pytest.mark.parametrize("v2t_ranks", ["videos", "captions"])
def test_a_run_ranks_by_the_convention_and_says_which(several, evaluate, v2t_ranks):
    flags = [] if v2t_ranks == "videos" else ["--v2t_ranks", "captions"]
    found, folder = evaluate("run", "--val_csv", several("list", 2), *flags)
    expected = slow_ranks(folder, v2t_ranks)
    rows = rows_of(folder / "ranks.csv")
    ranks = {(row["direction"], row["text" if row["direction"] == "t2v" else "video"]): row["rank"] for row in rows}
    assert {query: float(rank) for query, rank in ranks.items()} == expected and len(rows) == 11 + 6
    for direction in ("t2v", "v2t"):
        of_direction = [rank for query, rank in expected.items() if query[0] == direction]
        assert found[f"{direction}_MnR"] == pytest.approx(np.mean(of_direction), abs=1e-4)
        assert found[f"{direction}_R1"] == pytest.approx(100 * np.mean(np.array(of_direction) <= 1), abs=1e-4)
    assert found["protocol"] == {"t2v_queries": 11, "v2t_queries": 6, "v2t_ranks": v2t_ranks}
    assert (found["texts"], found["videos"]) == (11, 6)
    log = (folder / "log.txt").read_text()
    says = f"t2v has 11 queries, all captions; v2t has 6, the videos, {'ranked' if v2t_ranks == 'videos' else 'whose'}"
    assert log.count(says) == log.count(f"(--v2t_ranks {v2t_ranks})") == 2  # before it computes, and in the legend


def test_ranks_name_what_was_found_first(several, evaluate):
    _, folder = evaluate("run", "--val_csv", several("list", 2))
    texts, videos = ((folder / "features" / f"{name}_ids.txt").read_text().split() for name in ("text", "video"))
    text, video = (np.load(folder / "features" / f"{name}.npy") for name in ("text", "video"))
    similarity = text @ video.T
    of = {row["key"]: row["video_id"] for row in rows_of(folder.parent / "list.csv")}
    for row in rows_of(folder / "ranks.csv"):
        assert of[row["text"]] == row["video"]
        i, j = texts.index(row["text"]), videos.index(row["video"])
        first = videos.index(row["first_video"])
        if row["direction"] == "t2v":
            assert row["first_text"] == ""
            values, found, right = similarity[i], first, similarity[i, j]
        else:
            assert of[row["first_text"]] == row["first_video"]
            own = [number for number, name in enumerate(texts) if of[name] == row["video"]]
            values, found, right = similarity[:, j], texts.index(row["first_text"]), similarity[own, j].max()
            assert similarity[i, j] == right
        assert values[found] == values.max()
        assert float(row["similarity"]) == pytest.approx(right, abs=1e-6)
        assert float(row["first_similarity"]) == pytest.approx(values.max(), abs=1e-6)
        assert (first == j) if row["rank"] == "1.0" else values.max() >= right


def test_one_caption_a_video_needs_no_words_about_it(tiny_run, tmp_path, evaluate):
    found, folder = evaluate("videos")
    other, among_captions = evaluate("captions", "--v2t_ranks", "captions")
    assert "protocol" not in found and "several captions" not in (folder / "log.txt").read_text()
    assert {name: value for name, value in found.items() if name not in ("seconds", "peak_memory_mb")} == {
        name: value for name, value in other.items() if name not in ("seconds", "peak_memory_mb")
    }
    assert (folder / "ranks.csv").read_bytes() == (among_captions / "ranks.csv").read_bytes()
    assert "set" not in rows_of(folder / "ranks.csv")[0]


def test_sets_are_ranked_by_themselves_by_the_same_convention(several, evaluate):
    found, folder = evaluate("run", "--val_csv", several("list"))
    assert found["sets"] == 2 and found["protocol"]["v2t_queries"] == 6
    set_of = {row["key"]: row["set"] for row in rows_of(folder.parent / "list.csv")}
    rows = rows_of(folder / "ranks.csv")
    assert len(rows) == 11 + 6
    for row in rows:
        assert row["set"] == set_of[row["text"]]
        assert not row["first_text"] or set_of[row["first_text"]] == row["set"]
    means = {}
    for name in "ab":
        ranks = [float(row["rank"]) for row in rows if row["set"] == name and row["direction"] == "v2t"]
        assert max(ranks) <= len(ranks)  # among the set's videos, although its captions are more
        means[name] = np.mean(ranks)
    assert found["v2t_MnR"] == pytest.approx(np.mean([*means.values()]), abs=1e-4)
    assert "; ranks within each set, means over sets" in (folder / "log.txt").read_text()


def test_an_evaluation_beside_a_training_has_its_own_ranks(tiny_run, several, tmp_path, capsys):
    listed = several("list", 2)
    training = [*TINY_TRAINING, "--epochs", "1", "--val_csv", listed]
    assert run(tiny_run, tmp_path / "run", *training) == 0
    before = (tmp_path / "run" / "ranks.csv").read_bytes()
    more = ["--do_eval", "--init_model", str(tmp_path / "run" / "best.pt"), "--val_csv", listed]
    assert run(tiny_run, tmp_path / "run", *more, "--v2t_ranks", "captions") == 0
    assert (tmp_path / "run" / "ranks.csv").read_bytes() == before
    assert len(rows_of(tmp_path / "run" / "ranks_eval.csv")) == 17
    assert json.loads((tmp_path / "run" / "results_eval.json").read_text())["protocol"]["v2t_ranks"] == "captions"
    # metrics of one run are of one convention
    capsys.readouterr()
    assert run(tiny_run, tmp_path / "run", *training, "--v2t_ranks", "captions") == 1
    assert "v2t_ranks: was videos, is captions" in capsys.readouterr().err


def test_the_convention_belongs_to_a_run_where_it_matters_alone(tmp_path):
    samples = [Sample(f"s{k}", f"video{k}", tmp_path / f"{k}.mp4", ("a",)) for k in range(3)]
    again = [*samples, Sample("s3", "video1", tmp_path / "1.mp4", ("b",))]
    identities = {
        (len(listed), name): RetrievalTask(
            None, EvaluationDataset(listed, VideoSettings(2, 24, 0)), False, 2, 0, v2t_ranks=name
        ).identity
        for listed in (samples, again)
        for name in ("videos", "captions")
    }
    assert identities[3, "videos"] == identities[3, "captions"] == {}
    former = former_settings(RetrievalSettings)
    for name, changed in {"captions": [], "videos": ["v2t_ranks: was captions, is videos"]}.items():
        before, now = (
            {"identity": {}},
            {"identity": identities[4, name]},
        )  # of a checkpoint from before there was either
        assert list_differences(before, now, former=former) == changed
