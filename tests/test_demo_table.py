"""Motion accuracy: the right motion among the captions of the right object."""

import numpy as np
import pytest

from preprocess.toy_shapes import MOTIONS
from scripts.demo_table import motion_accuracy

CAPTIONS = [f"a {thing} {motion}" for thing in ("red circle", "blue cross") for motion in MOTIONS]


def test_only_captions_of_the_right_object_compete():
    text = np.eye(12)
    video = np.eye(12)
    assert motion_accuracy(text, video, CAPTIONS) == 100
    video[:, :6] += 5 * (np.arange(12) >= 6)[:, None]  # another object's captions may be nearer
    assert motion_accuracy(text, video, CAPTIONS) == 100
    video = np.eye(12)[[1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11, 6]]  # each looks like another motion of its object
    assert motion_accuracy(text, video, CAPTIONS) == 0
    video[:3] = np.eye(12)[:3]
    assert motion_accuracy(text, video, CAPTIONS) == pytest.approx(25)


def test_captions_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="ends in none of the motions"):
        motion_accuracy(np.eye(1), np.eye(1), ["a dog"])
    with pytest.raises(ValueError, match="no caption 'a red circle moving right'"):
        motion_accuracy(np.eye(1), np.eye(1), ["a red circle moving left"])
