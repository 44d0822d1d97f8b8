"""Scores against obvious loops, moments, what should not be, and whether anything stands out."""

import numpy as np
import pytest

from search import scoring
from search.scoring import Judge, Moment, Scale, combine, find_moments, similarities
from search.store import Rows


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def rows_of(*counts):
    """Windows of 2 s every second, so many a video."""
    videos = np.repeat(np.arange(len(counts)), counts)
    starts = np.concatenate([np.arange(count, dtype=float) for count in counts])
    return Rows(np.arange(len(videos)), np.arange(len(videos)) + 100, videos, starts, starts + 2)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_similarities_are_the_cosines_whatever_the_block_and_the_rows(monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    embeddings, queries = unit(50, 8).astype(np.float16), unit(3, 8, seed=1)
    rows = np.array([0, 1, 2, 5, 9, 10, 11, 40, 49])
    expected = [[float(np.dot(embeddings[row].astype(np.float32), query)) for query in queries] for row in rows]
    np.testing.assert_allclose(similarities(embeddings, rows, queries), expected, atol=1e-6)


def test_neighbours_that_are_nearly_as_good_are_one_moment():
    scores = np.array([0, 0.1, 2.0, 1.9, 1.7, 0.2, 0, 0, 1.8, 0], float)
    found = find_moments(scores, rows_of(10), None, 10)
    assert found[:2] == [Moment(2, 4, 2, 2.0), Moment(8, 8, 8, 1.8)]


def test_a_moment_stays_in_its_video():
    scores = np.array([0, 0, 1.9, 2.0, 0, 0], float)
    assert find_moments(scores, rows_of(3, 3), None, 2) == [Moment(3, 3, 3, 2.0), Moment(2, 2, 2, 1.9)]


def test_no_two_moments_overlap_and_the_best_come_first():
    rows, scores = rows_of(40, 3, 60), np.random.default_rng(0).normal(size=103)
    found = find_moments(scores, rows, None, 20)
    assert len(found) == 20 and found[0].best == int(np.argmax(scores))
    assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
    spans = [(rows.videos[m.best], rows.starts[m.first], rows.ends[m.last]) for m in found]
    for place, (video, start, end) in enumerate(spans):
        assert start <= rows.starts[found[place].best] < rows.ends[found[place].best] <= end
        assert not any(v == video and start < e and end > s for v, s, e in spans[:place])


def test_a_moment_does_not_reach_into_another_or_into_what_may_not_be_found():
    scores = np.array([10.0, 7.9, 8, 8, 7.5])
    assert find_moments(scores, rows_of(5), None, 2) == [Moment(0, 0, 0, 10.0), Moment(2, 4, 2, 8.0)]
    allowed = np.array([True, True, True, False, True])
    assert find_moments(scores, rows_of(5), allowed, 2)[1] == Moment(2, 2, 2, 8.0)


def test_only_what_is_allowed_is_found():
    scores, allowed = np.array([5.0, 0, 0, 3, 0, 1]), np.array([False, True, True, False, True, True])
    assert [m.best for m in find_moments(scores, rows_of(1, 1, 1, 1, 1, 1), allowed, 2)] == [5, 1]
    assert find_moments(scores, rows_of(6), np.zeros(6, bool), 2) == []


def test_few_candidates_give_what_all_give(monkeypatch):
    rows, scores = rows_of(300, 200), np.random.default_rng(1).normal(size=500)
    expected = find_moments(scores, rows, None, 3)
    monkeypatch.setattr(scoring, "MIN_CANDIDATES", 150)
    assert find_moments(scores, rows, None, 3) == expected


def combined(wanted, unwanted=()):
    """Scores on the scale of the windows themselves."""
    found = np.stack([*wanted, *unwanted], axis=1)
    return combine(found, len(wanted), Scale.of(found))


def test_what_should_not_be_counts_above_its_mean_only():
    wanted, unwanted = np.array([1.0, 1.0, 0, 0, 0, 0]), np.array([9.0, 0, 0, 0, 0, -9])
    scores = combined([wanted], [unwanted])
    assert np.argmax(scores) == 1
    assert scores[5] == scores[4]  # less than nothing of it is no merit
    np.testing.assert_allclose(combined([wanted]), (wanted - wanted.mean()) / wanted.std())
    assert combined([np.full(3, 0.25)]).tolist() == [0, 0, 0]


def test_scores_do_not_depend_on_the_scale_of_a_models_cosines():
    wanted, unwanted = np.random.default_rng(0).normal(size=(2, 30))
    np.testing.assert_allclose(combined([wanted], [unwanted]), combined([wanted * 0.1 + 0.3], [unwanted * 5 - 2]))


def test_candidates_with_gaps_between_them_are_no_moment():
    rows, scores = rows_of(10), np.full(10, 2.0)
    assert find_moments(scores, rows, None, 1) == [Moment(0, 9, 0, 2.0)]
    places = np.array([0, 1, 2, 7, 8])
    assert find_moments(scores[places], rows.take(places), None, 2) == [Moment(0, 2, 0, 2.0), Moment(3, 4, 3, 2.0)]


def test_the_judge_knows_what_generic_texts_reach(monkeypatch):
    monkeypatch.setattr(scoring, "BLOCK", 16)
    embeddings, texts = unit(100, 8).astype(np.float16), unit(20, 8, seed=3)
    best = [max(float(row.astype(np.float32) @ text) for row in embeddings) for text in texts]
    judge = Judge.of(embeddings, np.arange(100), texts, threshold=1.0)
    assert judge.excess(np.mean(best)) == pytest.approx(0, abs=1e-4)
    bar = np.mean(best) + np.std(best)
    assert judge.stands_out(bar + 1e-4) and not judge.stands_out(bar - 1e-4)
