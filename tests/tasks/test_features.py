"""Saved embeddings: what two runs saved is never mixed, and a full disk is said."""

import errno
import os

import numpy as np
import pytest

from common.errors import UserError
from modules.tasks import embedding
from modules.tasks.embedding import save_features

ARRAYS = {"text": np.ones((2, 3), np.float32), "video": np.zeros((1, 3), np.float32)}
COLUMNS = {"text_ids": ["a", "b"], "video_ids": ["v\nw"], "captions": ["ein Hündchen", "two"]}


def test_what_is_saved_is_a_row_a_line_and_nothing_of_an_earlier_run_stays(tmp_path):
    save_features(tmp_path, ARRAYS, COLUMNS | {"sets": ["1"]})
    save_features(tmp_path, ARRAYS, COLUMNS | {"labels": ["run"]})
    names = {*(f"{name}.npy" for name in ARRAYS), *(f"{name}.txt" for name in (*COLUMNS, "labels"))}
    assert {path.name for path in tmp_path.iterdir()} == names <= set(embedding.FEATURE_FILES)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), array)
    assert (tmp_path / "video_ids.txt").read_text() == "v w\n"
    assert (tmp_path / "captions.txt").read_text(encoding="utf-8") == "ein Hündchen\ntwo\n"


def test_texts_of_one_run_never_stand_beside_videos_of_another(tmp_path, monkeypatch):
    save_features(tmp_path, ARRAYS, COLUMNS)
    replace = os.replace

    def full(source, target):
        if target.name == "video.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot be written to .*No space left on device.*another --save_features"):
        save_features(tmp_path, ARRAYS, COLUMNS)
    assert {path.name for path in tmp_path.iterdir()} == {"text.npy"}
