"""Losses and retrieval metrics against their definitions."""

import tracemalloc
from fractions import Fraction
from itertools import chain

import numpy as np
import pytest
import torch

from helpers.paths import shared_data
from modules.tasks.losses import same_video_or_caption, symmetric_contrastive_loss
from modules.tasks.metrics import (
    V2T_RANKS,
    rank,
    rank_embeddings,
    retrieval_metrics,
    retrieval_metrics_of_embeddings,
)


def test_contrastive_loss_is_the_mean_over_both_directions():
    similarity = torch.randn(5, 5, dtype=torch.float64)
    expected = 0.0
    for i in range(5):
        expected -= similarity[i].log_softmax(0)[i] + similarity[:, i].log_softmax(0)[i]
    torch.testing.assert_close(symmetric_contrastive_loss(similarity), expected / 10)


def test_excluded_pairs_are_no_negatives():
    similarity = torch.randn(3, 3, dtype=torch.float64)
    excluded = same_video_or_caption(torch.tensor([7, 2**62, 7]), torch.tensor([0, 1, 2]))
    assert excluded.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    changed = similarity.clone()
    changed[0, 2], changed[2, 0] = 50.0, 60.0
    loss = symmetric_contrastive_loss(similarity, excluded)
    torch.testing.assert_close(loss, symmetric_contrastive_loss(changed, excluded))
    assert symmetric_contrastive_loss(changed) > loss + 1
    pair = same_video_or_caption(torch.tensor([0, 1]), torch.tensor([5, 5]))
    assert pair.tolist() == [[False, True], [True, False]]


def test_metrics_on_the_real_similarity_matrix():
    similarity = np.load(shared_data("metrics") / "msrvtt_1ka_similarity.npy")
    expected = {"t2v": (48.0, 71.3, 81.4, 2, 13.649), "v2t": (46.5, 74.9, 83.7, 2, 9.785)}
    videos = np.eye(1000, dtype=similarity.dtype)  # the matrix as captions whose products with these are itself
    in_one_block, in_many = (retrieval_metrics_of_embeddings(similarity, videos, block_bytes=b) for b in (2**25, 2**19))
    for metrics in (retrieval_metrics(similarity), in_one_block, in_many):
        for direction, values in expected.items():
            got = [metrics[f"{direction}_{name}"] for name in ("R1", "R5", "R10", "MdR", "MnR")]
            assert got == pytest.approx(values, abs=1e-9)
    ranks = rank(similarity)["v2t"].ranks
    ties = sum((similarity[:, j] == similarity[j, j]).sum() > 1 for j in range(1000))
    assert ties == 9 and (ranks % 1 != 0).sum() <= ties


@pytest.mark.parametrize("total, all_hits", [(7, range(8)), (27, range(28)), (1000, (289, 570, 814))])
def test_percentages_are_rounded_once(total, all_hits):
    for hits in all_hits:
        similarity = np.eye(total)
        similarity[hits:] = 1 - similarity[hits:]  # these find every other candidate first
        metrics = retrieval_metrics(similarity)
        assert metrics["t2v_R1"] == float(Fraction(100 * hits, total)), hits


def test_ranks_are_averages_over_ties():
    similarity = np.array([[0.5, 0.5, 0.1], [0.7, 0.7, 0.7], [0.9, 0.2, 0.3]])
    assert rank(similarity, np.arange(3))["t2v"].ranks.tolist() == [1.5, 2.0, 2.0]
    assert rank(similarity, np.arange(3))["v2t"].ranks.tolist() == [3.0, 1.0, 2.0]


def test_a_video_with_several_captions_counts_by_its_best():
    similarity = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.6]])  # captions 0 and 1 are of video 0
    captions = np.array([0, 0, 1])
    assert rank(similarity, captions)["t2v"].ranks.tolist() == [2.0, 1.0, 2.0]
    for v2t_ranks in V2T_RANKS:
        assert rank(similarity, captions, v2t_ranks)["v2t"].ranks.tolist() == [1.0, 2.0]
    similarity[1, 1] = 0.8  # now both captions of video 0 are better than the one of video 1
    assert rank(similarity, captions, "videos")["v2t"].ranks.tolist() == [1.0, 2.0]
    assert rank(similarity, captions, "captions")["v2t"].ranks.tolist() == [1.0, 3.0]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(FloatingPointError, match="NaN"):
        retrieval_metrics(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="square"):
        retrieval_metrics(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 videos have no caption"):
        retrieval_metrics(np.zeros((2, 2)), np.array([0, 0]))
    with pytest.raises(ValueError, match="one of videos, captions, found 'texts'"):
        retrieval_metrics(np.zeros((2, 2)), v2t_ranks="texts")
    with pytest.raises(ValueError, match="for 2 captions"):
        retrieval_metrics(np.zeros((2, 2)), np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="not among the 2"):
        retrieval_metrics(np.zeros((2, 2)), np.array([-1, 1]))


def metrics_by_definition(similarity: np.ndarray, text_to_video: np.ndarray, v2t_ranks: str) -> dict[str, float]:
    """The metrics, a query and a candidate at a time."""

    def rank_of(right: float, wrong: list[float]) -> float:
        return 1 + sum(value > right for value in wrong) + sum(value == right for value in wrong) / 2

    num_texts, num_videos = similarity.shape
    ranks = {"t2v": [], "v2t": []}
    for i in range(num_texts):
        wrong = [similarity[i, j] for j in range(num_videos) if j != text_to_video[i]]
        ranks["t2v"].append(rank_of(similarity[i, text_to_video[i]], wrong))
    for j in range(num_videos):
        of_each = [[similarity[i, j] for i in range(num_texts) if text_to_video[i] == k] for k in range(num_videos)]
        right = max(of_each.pop(j))
        wrong = [max(values) for values in of_each] if v2t_ranks == "videos" else list(chain(*of_each))
        ranks["v2t"].append(rank_of(right, wrong))
    metrics = {}
    for direction, values in ranks.items():
        for k in (1, 5, 10):
            metrics[f"{direction}_R{k}"] = 100 * sum(value <= k for value in values) / len(values)
        metrics[f"{direction}_MdR"], metrics[f"{direction}_MnR"] = np.median(values), np.mean(values)
    return metrics


@pytest.mark.parametrize("v2t_ranks", V2T_RANKS)
@pytest.mark.parametrize("block_bytes", [1, 1000, 2**20])  # a row, some rows and all of them
@pytest.mark.parametrize("num_texts, num_videos", [(1, 1), (23, 23), (61, 17), (90, 89)])
def test_metrics_of_embeddings_are_those_of_their_similarities(num_texts, num_videos, block_bytes, v2t_ranks):
    generator = np.random.default_rng(num_texts)
    captions = np.concatenate([np.arange(num_videos), generator.integers(num_videos, size=num_texts - num_videos)])
    generator.shuffle(captions)
    # whole numbers, of which every product is exact, so that the reference may multiply in another order
    video = generator.integers(-2, 3, size=(num_videos, 3)).astype(np.float32)
    text = video[captions] + generator.integers(-1, 2, size=(num_texts, 3)).astype(np.float32)
    similarity = text @ video.T
    expected = metrics_by_definition(similarity, captions, v2t_ranks)
    assert retrieval_metrics(similarity, captions, v2t_ranks) == pytest.approx(expected)
    assert retrieval_metrics_of_embeddings(text, video, captions, block_bytes, v2t_ranks) == pytest.approx(expected)


@pytest.mark.parametrize("block_bytes", [1, 3000, 2**20])
def test_of_several_captions_the_best_counts_and_only_first_places_stay(block_bytes):
    generator = np.random.default_rng(0)
    captions = generator.permutation(np.concatenate([np.arange(40), generator.integers(40, size=160)]))
    video, meant = generator.normal(size=(2, 40, 64)).astype(np.float32)  # captions of a video resemble each other
    text = video[captions] + 3 * meant[captions] + generator.normal(size=(200, 64)).astype(np.float32)
    text[10:40] = text[40:70]  # repeated, some of them for another video
    videos, among_captions = (rank_embeddings(text, video, captions, block_bytes, name) for name in V2T_RANKS)
    for column in ("ranks", "right", "first", "right_similarity", "first_similarity"):
        np.testing.assert_array_equal(getattr(videos["t2v"], column), getattr(among_captions["t2v"], column))
        if column != "ranks":
            np.testing.assert_array_equal(getattr(videos["v2t"], column), getattr(among_captions["v2t"], column))
    mine, others = videos["v2t"].ranks, among_captions["v2t"].ranks
    np.testing.assert_array_equal(mine == 1, others == 1)
    assert 0 < (mine == 1).sum() < 40 and (mine <= others).all() and (mine < others).sum() > 10
    assert mine.max() <= 40 < others.max()
    np.testing.assert_array_equal(captions[videos["v2t"].first[mine == 1]], np.flatnonzero(mine == 1))


def test_captions_of_real_videos_count_by_the_best_in_any_order():
    similarity = np.load(shared_data("metrics") / "msrvtt_1ka_similarity.npy")[:, ::2]  # pairs of captions for a video
    of_videos = similarity.reshape(500, 2, 500).max(1).T  # (video that looks, video)
    right = of_videos.diagonal()[:, None]
    expected = 0.5 + (of_videos > right).sum(1) + (of_videos == right).sum(1) / 2
    order = np.random.default_rng(0).permutation(1000)
    ranking = rank(similarity[order], np.arange(1000)[order] // 2)["v2t"]
    assert ranking.ranks.tolist() == expected.tolist() and (expected % 1).any()


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_with_one_caption_a_video_both_rankings_are_the_same_bits(block_bytes):
    generator = np.random.default_rng(0)
    text, video = generator.normal(size=(2, 50, 8)).astype(np.float32)
    text[::3] = text[0]
    captions = generator.permutation(50)
    videos, among_captions = (rank_embeddings(text, video, captions, block_bytes, name) for name in V2T_RANKS)
    for direction in ("t2v", "v2t"):
        for mine, other in zip(vars(videos[direction]).values(), vars(among_captions[direction]).values(), strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("block_bytes", [1, 5000, 2**20])
@pytest.mark.parametrize("distinct, copies", [(1, 301), (43, 5)])
def test_equal_embeddings_tie_exactly(distinct, copies, block_bytes):
    generator = np.random.default_rng(0)
    video = generator.normal(size=(distinct, 512)).astype(np.float32)
    text = video + 20 * generator.normal(size=(distinct, 512)).astype(np.float32)
    once = retrieval_metrics_of_embeddings(text, video)
    assert distinct == 1 or once["t2v_MnR"] > 1.5 < once["v2t_MnR"]
    rows = generator.permutation(np.repeat(np.arange(distinct), copies))
    many = retrieval_metrics_of_embeddings(text[rows], video[rows], block_bytes=block_bytes)
    for name in ("t2v_MdR", "t2v_MnR", "v2t_MdR", "v2t_MnR"):
        # all copies of what was better are better, and the other copies of the right answer are as good
        assert many[name] == pytest.approx(1 + copies * (once[name] - 1) + (copies - 1) / 2)


@pytest.mark.parametrize("num_texts, num_videos", [(2000, 2000), (4000, 1000)])
@pytest.mark.parametrize("distinct", [2000, 500])
def test_the_matrix_is_never_held(distinct, num_texts, num_videos):
    rows = np.arange(num_texts) % distinct
    text, video = np.random.default_rng(0).normal(size=(2, distinct, 8)).astype(np.float32)[:, rows]
    video, captions = video[:num_videos].copy(), np.arange(num_texts) % num_videos
    tracemalloc.start()
    try:
        retrieval_metrics_of_embeddings(text, video, captions, block_bytes=2**16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < num_texts * num_videos / 4  # a quarter of what even a matrix of booleans takes


@pytest.mark.parametrize("block_bytes", [1, 2**20])
def test_embeddings_that_cannot_be_ranked_are_refused(block_bytes):
    def ranked(text, video, text_to_video=None):
        return retrieval_metrics_of_embeddings(text, video, text_to_video, block_bytes)

    text, video = np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)
    for broken in (text, video):
        broken[2, 1] = np.nan
        with pytest.raises(FloatingPointError, match="NaN"):
            ranked(text, video)
        broken[2, 1] = 1
    with pytest.raises(ValueError, match="2 videos have no caption, the first is number 0"):
        ranked(text, video, np.array([1, 1, 1]))
    with pytest.raises(ValueError, match="square"):
        ranked(text, video[:2])
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 2\)"):
        ranked(text, video[:, :2])
    with pytest.raises(ValueError, match="not among the 3"):
        ranked(text, video, np.array([0, 1, 3]))


@pytest.mark.parametrize("v2t_ranks", V2T_RANKS)
@pytest.mark.parametrize("block_bytes", [1, 1000, 2**20])
def test_what_each_query_finds_first_is_the_best_of_all_candidates(block_bytes, v2t_ranks):
    generator = np.random.default_rng(3)
    captions = generator.permutation(np.concatenate([np.arange(17), generator.integers(17, size=44)]))
    video = generator.integers(-2, 3, size=(17, 3)).astype(np.float32)
    text = video[captions] + generator.integers(-1, 2, size=(61, 3)).astype(np.float32)
    similarity = text @ video.T
    found = rank_embeddings(text, video, captions, block_bytes, v2t_ranks)
    right_of = {
        "t2v": [[number] for number in captions],
        "v2t": [np.flatnonzero(captions == number).tolist() for number in range(17)],
    }
    for direction, table in {"t2v": similarity, "v2t": similarity.T}.items():
        ranking, firsts = found[direction], 0
        for query, row in enumerate(table.tolist()):
            right = max(right_of[direction][query], key=lambda candidate: row[candidate])  # of equals the first
            first = right if ranking.ranks[query] == 1 else row.index(max(row))
            firsts += first != right
            assert (ranking.right[query], ranking.first[query]) == (right, first)
            assert (ranking.right_similarity[query], ranking.first_similarity[query]) == (row[right], row[first])
        assert 0 < firsts < len(table)
