"""Losses and retrieval metrics against their definitions."""

import numpy as np
import pytest
import torch
from conftest import shared_data

from modules.losses import same_video_or_caption, symmetric_contrastive_loss
from modules.metrics import retrieval_metrics, text_to_video_ranks, video_to_text_ranks


def test_contrastive_loss_is_the_mean_over_both_directions():
    similarity = torch.randn(5, 5, dtype=torch.float64)
    expected = 0.0
    for i in range(5):
        expected -= similarity[i].log_softmax(0)[i] + similarity[:, i].log_softmax(0)[i]
    torch.testing.assert_close(symmetric_contrastive_loss(similarity), expected / 10)


def test_excluded_pairs_are_no_negatives():
    similarity = torch.randn(3, 3, dtype=torch.float64)
    excluded = same_video_or_caption(["a", "b", "a"], ["x", "y", "z"])
    assert excluded.tolist() == [[False, False, True], [False, False, False], [True, False, False]]
    changed = similarity.clone()
    changed[0, 2], changed[2, 0] = 50.0, 60.0
    loss = symmetric_contrastive_loss(similarity, excluded)
    torch.testing.assert_close(loss, symmetric_contrastive_loss(changed, excluded))
    assert symmetric_contrastive_loss(changed) > loss + 1
    assert same_video_or_caption(["a", "b"], ["x", "x"]).tolist() == [[False, True], [True, False]]


def test_metrics_on_the_real_similarity_matrix():
    similarity = np.load(shared_data("metrics") / "msrvtt_1ka_similarity.npy")
    metrics = retrieval_metrics(similarity)
    expected = {"t2v": (48.0, 71.3, 81.4, 2, 13.649), "v2t": (46.5, 74.9, 83.7, 2, 9.785)}
    for direction, values in expected.items():
        got = [metrics[f"{direction}_{name}"] for name in ("R1", "R5", "R10", "MdR", "MnR")]
        assert got == pytest.approx(values, abs=1e-9)
    ranks = video_to_text_ranks(similarity, np.arange(1000))
    ties = sum((similarity[:, j] == similarity[j, j]).sum() > 1 for j in range(1000))
    assert ties == 9 and (ranks % 1 != 0).sum() <= ties


def test_ranks_are_averages_over_ties():
    similarity = np.array([[0.5, 0.5, 0.1], [0.7, 0.7, 0.7], [0.9, 0.2, 0.3]])
    assert text_to_video_ranks(similarity, np.arange(3)).tolist() == [1.5, 2.0, 2.0]
    assert video_to_text_ranks(similarity, np.arange(3)).tolist() == [3.0, 1.0, 2.0]


def test_a_video_with_several_captions_counts_by_its_best():
    similarity = np.array([[0.1, 0.9], [0.8, 0.2], [0.7, 0.6]])  # captions 0 and 1 are of video 0
    captions = np.array([0, 0, 1])
    assert text_to_video_ranks(similarity, captions).tolist() == [2.0, 1.0, 2.0]
    assert video_to_text_ranks(similarity, captions).tolist() == [1.0, 2.0]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(FloatingPointError, match="NaN"):
        retrieval_metrics(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="square"):
        retrieval_metrics(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 videos have no caption"):
        retrieval_metrics(np.zeros((2, 2)), np.array([0, 0]))
