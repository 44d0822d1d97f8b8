"""A test list with sets: each is ranked by itself, and the metrics are the means over sets."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dataloaders.samples import Sample
from helpers.runs import results, rows_of, run
from modules.runtime.identity import samples_fingerprint
from modules.tasks.metrics import V2T_RANKS, retrieval_metrics
from modules.tasks.retrieval import Embeddings, RetrievalTask

SETS = ["b", "a", "b", "b", "a", "b", "b"]  # of the tiny list's six videos, the last of which has a second caption


def write_list(path, rows, sets=None):
    """A test list of (video, caption) rows, in sets where they are given."""
    header = "key,vid_key,video_id,sentence"
    lines = [f'ret{number},msr{number},{video},"{caption}"' for number, (video, caption) in enumerate(rows)]
    if sets is not None:
        header, lines = f"{header},set", [f"{line},{name}" for line, name in zip(lines, sets, strict=True)]
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def metrics_of(found):
    return {name: value for name, value in found.items() if name.startswith(("t2v", "v2t"))}


@pytest.fixture
def rows(tiny_files):
    listed = [(row["video_id"], row["sentence"]) for row in rows_of(tiny_files / "dataset" / "test.csv")]
    return [*listed, (listed[-1][0], "something growing")]


@pytest.fixture
def evaluate(tiny_run, tmp_path):
    def evaluated(name, rows, sets=None, *flags):
        path = write_list(tmp_path / f"{name}.csv", rows, sets)
        more = ["--do_eval", "--method", "zero_shot", "--val_csv", str(path), *flags]
        assert run(tiny_run, tmp_path / name, *more, "--save_features", str(tmp_path / name / "features")) == 0
        return results(tmp_path / name)

    return evaluated


def test_metrics_are_the_means_of_those_of_each_set_by_itself(evaluate, rows, tmp_path):
    found = evaluate("sets", rows, SETS)
    alone = [
        evaluate(name, [row for row, its in zip(rows, SETS, strict=True) if its == name]) for name in sorted(set(SETS))
    ]
    for name, value in metrics_of(found).items():
        assert value == pytest.approx(np.mean([one[name] for one in alone]), abs=1e-4)
    together = evaluate("together", rows)
    assert together["t2v_MnR"] > found["t2v_MnR"] and together["v2t_MnR"] > found["v2t_MnR"]

    assert (found["texts"], found["videos"], found["sets"]) == (7, 6, 2) and "sets" not in together
    assert (tmp_path / "sets" / "features" / "sets.txt").read_text().split() == SETS[:6]
    assert not (tmp_path / "together" / "features" / "sets.txt").exists()
    log = (tmp_path / "sets" / "log.txt").read_text()
    assert "7 texts and 6 videos in 2 sets, each ranked by itself" in log and "means over sets" in log
    assert "means over sets" not in (tmp_path / "together" / "log.txt").read_text()


def test_a_video_that_is_left_out_is_missing_in_its_own_set_alone(evaluate, rows):
    with_missing = [(f"gone{video}" if number == 4 else video, text) for number, (video, text) in enumerate(rows)]
    found = evaluate("sets", with_missing, SETS, "--on_bad_eval_video", "drop")
    assert (found["texts"], found["videos"], found["sets"], found["missing_videos"]) == (6, 5, 2, 1)
    larger = evaluate("b", [row for row, its in zip(rows, SETS, strict=True) if its == "b"])
    for name, value in metrics_of(found).items():  # of the smaller set one pair is left, whose only rank is 1
        of_one = 100 if "_R" in name else 1
        assert value == pytest.approx((larger[name] + of_one) / 2, abs=1e-4)


@pytest.mark.parametrize("v2t_ranks", V2T_RANKS)
def test_heads_that_score_pairs_rank_within_sets_too(v2t_ranks):
    rng = np.random.default_rng(0)
    text, video = (rng.normal(size=(count, 4)).astype(np.float32) for count in (7, 6))
    text_to_video, names = np.array([0, 1, 2, 3, 4, 5, 5]), np.array(SETS[:6])
    model = SimpleNamespace(head=SimpleNamespace(is_product=False), similarity=lambda a, b: torch.tanh(3 * a @ b.T))
    processes = SimpleNamespace(
        rank=0, world_size=1, device=torch.device("cpu"), is_main=False, gather_objects=lambda part: [part]
    )
    compute = SimpleNamespace(processes=processes, precision=SimpleNamespace(dtype=torch.float32))
    embeddings = Embeddings(text, video, text_to_video, ["t"] * 7, ["c"] * 7, ["v"] * 6, list(names))
    found = RetrievalTask.metrics(model, embeddings, compute, v2t_ranks)

    similarity, parts = np.tanh(3 * text @ video.T), []
    for name in "ab":
        columns = np.flatnonzero(names == name)
        lines = np.flatnonzero(names[text_to_video] == name)
        right = [list(columns).index(column) for column in text_to_video[lines]]
        parts.append(retrieval_metrics(similarity[np.ix_(lines, columns)], np.array(right), v2t_ranks))
    assert found == pytest.approx({name: np.mean([part[name] for part in parts]) for name in parts[0]})
    whole = RetrievalTask.metrics(model, replace(embeddings, sets=None), compute, v2t_ranks)
    expected = retrieval_metrics(similarity, text_to_video, v2t_ranks)
    assert whole == pytest.approx(expected) and whole != pytest.approx(found)


def test_sets_are_in_the_digest_of_a_list_that_has_them_alone(tmp_path):
    samples = [Sample(f"ret{k}", f"video{k}", tmp_path, (f"caption {k}",)) for k in range(2)]
    assert samples_fingerprint(samples) == "2 samples, ae7b1571169ab441"  # as checkpoints hold it
    both = [
        [replace(sample, test_set=name) for sample, name in zip(samples, names, strict=True)] for names in ("ab", "aa")
    ]
    assert len({samples_fingerprint(listed) for listed in (samples, *both)}) == 3
