"""Motion accuracy: the right motion among the captions of the right object."""

import json

import numpy as np
import pytest

from preprocess.toy.events import LEVELS
from preprocess.toy.shapes import MOTIONS
from scripts.demo_table import COLUMNS, footnote, main, motion_accuracy, table

NAMES = {task: [name for _, name in columns] for task, columns in COLUMNS.items()}
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


@pytest.mark.parametrize("task", list(COLUMNS))
def test_the_table_says_what_its_columns_are(task, tmp_path, capsys):
    features = tmp_path / "features"
    features.mkdir()
    np.save(features / "text.npy", np.eye(12))
    np.save(features / "video.npy", np.eye(12)[[1, *range(1, 12)]])
    (features / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    (tmp_path / "results.json").write_text(json.dumps(dict.fromkeys(NAMES[task], 50.0) | {"trainable_parameters": 7}))
    config = {"settings": {"seed": 1, "clip": "/home/me"}, "git_commit": "abc"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    main([task, f"ours={tmp_path}", "--record", str(tmp_path / "made" / "table.json")])
    ours = json.loads((tmp_path / "made" / "table.json").read_text())["ours"]
    assert ours["results"] == json.loads((tmp_path / "results.json").read_text())
    assert (ours["settings"], ours["git_commit"]) == ({"seed": 1}, "abc")
    printed = capsys.readouterr().out
    assert {"retrieval": "R@K: ", "recognition": "top-K: "}[task] in printed
    if task == "retrieval":
        assert json.loads((tmp_path / "results.json").read_text())["motion_accuracy"] == 91.6667


def test_results_of_a_thinned_test_set_are_marked():
    whole = dict.fromkeys(NAMES["recognition"], 50.0) | {"trainable_parameters": 7}
    fewer = whole | {"thinned": {"videos": 5, "listed": 6}}
    lines = table("recognition", {"ours": whole, "a longer name": fewer}).splitlines()
    assert lines[1].startswith("ours   ") and lines[2].startswith("a longer name *  ")
    assert lines[3:] == ["* a longer name: thinned test set: 5 of 6 videos"] and len({*map(len, lines[:3])}) == 1
    assert table("recognition", {"ours": whole}).splitlines() == [line.replace(" " * 11, "", 1) for line in lines[:2]]


def test_captions_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="ends in none of the motions"):
        motion_accuracy(np.eye(1), np.eye(1), ["a dog"])
    with pytest.raises(ValueError, match="no caption 'a red circle moving right'"):
        motion_accuracy(np.eye(1), np.eye(1), ["a red circle moving left"])


EVENTS = [f"a red circle {motion}" for motion in LEVELS["events"].motions]


def test_two_events_in_another_order_are_another_motion():
    turned = EVENTS.index("a red circle growing, then moving left")
    text, video = np.eye(12), np.eye(12)
    assert motion_accuracy(text, video, EVENTS) == 100
    video[EVENTS.index("a red circle moving left, then growing")] = text[turned]
    assert motion_accuracy(text, video, EVENTS) == pytest.approx(100 * 11 / 12)


def test_all_videos_of_several_sets_count_with_the_captions_of_any():
    captions = [*CAPTIONS, *reversed(CAPTIONS)]
    text = np.concatenate([np.eye(12), np.eye(12)[::-1]])
    video = text.copy()
    assert motion_accuracy(text, video, captions) == 100
    video[20] = text[19]  # another motion of the object
    assert motion_accuracy(text, video, captions) == pytest.approx(100 * 23 / 24)


@pytest.mark.parametrize(
    ("captions", "says"), [(CAPTIONS, "six motions; chance is 16.7"), (EVENTS, "twelve motions; chance is 8.3")]
)
def test_the_footnote_says_chance_in_the_level_of_the_captions(captions, says, tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
    assert says in footnote("retrieval", tmp_path)
