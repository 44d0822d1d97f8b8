"""The level `events`: short events at random times, their reversals, what rests and what distracts; the test sets."""

import hashlib
from collections import Counter

import numpy as np
import pytest

from helpers.runs import rows_of
from preprocess import make_toy_dataset, pretrain_toy_clip
from preprocess.toy import events as toy_events
from preprocess.toy import shapes as toy
from preprocess.toy.events import EVENTS_LEVEL, LEVELS, STORIES

FRAMES = EVENTS_LEVEL.num_frames
LENGTH, UNSEEN = int(FRAMES * toy_events.EVENT), int(FRAMES * toy_events.UNSEEN)
CHANGES = {toy_events.LEFT: (-1, 0), toy_events.RIGHT: (1, 0), toy_events.GROW: (0, 1), toy_events.SHRINK: (0, -1)}


def pair_of(pair, seed=0, colour=0, shape=0):
    return EVENTS_LEVEL.render_pair(np.random.default_rng(seed), colour, shape, pair, FRAMES)


def seen(video, colour):
    """Where a colour is seen pure, (T, S, S) bool; of the object, which nothing covers, that is all but its edge."""
    return (video.frames == np.array(list(toy.COLOURS.values())[colour])).all(axis=-1)


def in_events(video):
    """(T,) bool each: the frames in which something happens, and those in which the object is gone."""
    happens, gone = np.zeros((2, FRAMES), dtype=bool)
    gone[video.starts[0] - UNSEEN : video.starts[-1] + LENGTH + UNSEEN] = True
    for start in video.starts:
        happens[start : start + LENGTH] = True
    return happens, gone & ~happens


# --- captions -----------------------------------------------------------------------------------------------


def test_captions_are_different_and_short_enough_for_the_text_tower():
    captions = EVENTS_LEVEL.captions
    assert len(captions) == len(set(captions)) == 108 and "a red circle moving left, then growing" in captions
    tokens = pretrain_toy_clip.build_tokenizer()(captions + EVENTS_LEVEL.class_captions)
    assert (tokens[:, -1] == 0).all()  # the end of the text is before the last place


def test_every_event_has_its_opposite_and_every_two_events_both_orders():
    assert len(STORIES) == len(set(STORIES)) == 12
    for story in STORIES:
        assert tuple(reversed(story)) in STORIES
        backwards = STORIES[STORIES.index(story) ^ 1]
        for event, opposite in zip(story, reversed(backwards), strict=True):
            assert np.add(CHANGES[event], CHANGES[opposite]).tolist() == [0, 0]


@pytest.mark.parametrize("level", LEVELS)
def test_the_stills_use_the_captions_and_class_prompts_of_the_level(level):
    level = LEVELS[level]
    stills = level.render_stills(np.random.default_rng(0), 900, 0.0)
    trails = {caption for caption, motion in zip(stills.captions, stills.motion, strict=True) if motion >= 0}
    assert trails <= {*level.captions, *level.class_captions} and trails >= set(level.class_captions)
    for caption, motion in zip(stills.captions, stills.motion, strict=True):
        if motion >= 0:
            assert caption.endswith(f" {level.motions[motion]}")


def test_objects_at_rest_have_captions_of_events_that_say_nothing_about_them():
    stills = EVENTS_LEVEL.render_stills(np.random.default_rng(0), 600, 1.0)
    resting = stills.motion == toy.NOT_SEEN
    assert toy.NOT_SEEN not in EVENTS_LEVEL.render_stills(np.random.default_rng(0), 600, 0.5).motion
    assert resting.sum() == 75 and (stills.position[resting] == -1).all()
    captions = [caption for caption, its in zip(stills.captions, resting, strict=True) if its]
    assert set(captions) <= set(EVENTS_LEVEL.captions)
    assert {caption.split(" ", 3)[3] for caption in captions} == set(EVENTS_LEVEL.motions)
    true = pretrain_toy_clip.true_captions(stills)
    for i in np.flatnonzero(resting):  # so all captions of the object's events are as true of it
        thing = toy.object_name(stills.colour[i], stills.shape[i])
        for j, caption in enumerate(stills.captions):
            placed = stills.position[j] >= 0
            assert bool(true[i, j]) == (not placed and caption.startswith((f"{thing} ", "something ")))


def test_the_levels_clip_is_examined_by_its_own_captions():
    settings = pretrain_toy_clip.PretrainSettings(level="events", steps=1, batch_size=20)
    assert pretrain_toy_clip.PretrainSettings(level="events").steps == EVENTS_LEVEL.clip_steps
    found = pretrain_toy_clip.held_out_accuracies(pretrain_toy_clip.train(settings), 0, EVENTS_LEVEL, num_stills=100)
    assert found.keys() == {"motion", "colour", "shape", "position"} and all(0 <= x <= 1 for x in found.values())


# --- videos -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", range(len(STORIES) // 2))
def test_the_second_of_a_pair_is_the_first_backwards(pair):
    first, second = pair_of(pair)
    np.testing.assert_array_equal(first.frames, second.frames[::-1])
    assert (first.motion, second.motion) == (2 * pair, 2 * pair + 1) and first.caption != second.caption
    for forwards, backwards in zip(in_events(first), in_events(second), strict=True):
        np.testing.assert_array_equal(forwards, backwards[::-1])


@pytest.mark.parametrize("pair", range(len(STORIES) // 2))
@pytest.mark.parametrize("shape", range(len(toy.SHAPES)))
def test_what_the_caption_says_happens_in_the_events_alone(pair, shape):
    for video in pair_of(pair, seed=pair, shape=shape):
        mask = seen(video, video.colour)
        happens, gone = in_events(video)
        resting = mask[~happens & ~gone]
        assert (resting == resting[0]).all() and resting[0].any() and not mask[gone].any()
        columns = np.arange(toy.IMAGE_SIZE)
        for event, start in zip(STORIES[video.motion], video.starts, strict=True):
            during = mask[start : start + LENGTH]
            area = during.sum(axis=(1, 2))
            middle = (during.sum(axis=1) * columns).sum(axis=1) / area
            along, across = CHANGES[event]
            moved, grown = middle[-1] - middle[0], np.log(area[-1] / area[0])
            assert [np.sign(moved) * (abs(moved) > 20), np.sign(grown) * (abs(grown) > 1)] == [along, across]
            if along:  # from as far on one side of the resting place to as far on the other
                rest = (resting[0].sum(axis=0) * columns).sum() / resting[0].sum()
                assert middle[0] + middle[-1] == pytest.approx(2 * rest, abs=1)


def test_an_event_takes_a_quarter_at_most_and_starts_at_any_time_between_rests():
    assert toy_events.EVENT <= 1 / 4 and toy_events.REST > 0
    rng, around = np.random.default_rng(0), UNSEEN + toy_events.REST
    for events in (1, 2):
        drawn = Counter(toy_events.sample_starts(rng, events, FRAMES) for _ in range(4000))
        whole = events * (LENGTH + UNSEEN) - UNSEEN  # from the start of the first to the end of the last
        firsts = range(around, FRAMES - whole - around + 1)
        assert sorted(drawn) == [tuple(first + k * (LENGTH + UNSEEN) for k in range(events)) for first in firsts]
        assert len(firsts) > 8 and min(drawn.values()) > 0.5 * 4000 / len(firsts)


def test_what_rests_does_not_tell_what_happens():
    """Of one scene all events begin and end in the same resting state."""
    for colour in range(EVENTS_LEVEL.colours):
        resting = [
            seen(video, colour)[frame]
            for pair in range(len(STORIES) // 2)
            for video in pair_of(pair, seed=7, colour=colour)
            for frame in (0, -1)
        ]
        assert all((mask == resting[0]).all() for mask in resting)


def test_objects_stay_inside_the_frame():
    resting = toy_events.Resting.sample(np.random.default_rng(0), 500)
    for story in STORIES:
        x, y, radius = resting.reach(story, np.arange(500))
        for centre in (x, y):
            assert (centre - radius >= 0).all() and (centre + radius <= toy.IMAGE_SIZE - 1).all()


def test_distractors_stand_and_drift_in_colours_that_no_caption_mentions():
    drifts = 0
    for seed in range(18):
        (video, _) = pair_of(seed % 6, seed=seed, colour=seed % 3)
        still, drifting = video.distractor_colours
        assert video.colour not in (still, drifting)
        for colour in (still, drifting):
            assert list(toy.COLOURS)[colour] not in video.caption
        if still != drifting:
            way = seen(video, drifting)
            assert (way[0] != way[-1]).any()
            drifts += 1
            stands = seen(video, still)  # but where the other two pass in front of it
            assert (stands.any(axis=0) != stands.all(axis=0)).sum() < 0.75 * way.any(axis=0).sum()
    assert drifts > 5


# --- test sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_every_test_set_has_each_caption_once_and_videos_of_its_own(level):
    settings = make_toy_dataset.DatasetSettings(level=level, num_train=2, num_frames=16)
    videos = list(make_toy_dataset.render_split(settings, "test"))
    assert len(videos) == 4 * 108
    for number in range(4):
        captions = [video.caption for video in videos[108 * number : 108 * (number + 1)]]
        assert sorted(captions) == sorted(LEVELS[level].captions)
    assert len({video.frames.tobytes() for video in videos}) == 4 * 108


def test_the_files_name_the_sets(tmp_path):
    settings = make_toy_dataset.DatasetSettings(num_train=2, num_test=2, num_frames=2, quantiser=40)
    folder = make_toy_dataset.make_dataset(tmp_path / "dataset", settings)
    rows = rows_of(folder / "test.csv")
    assert [(row["video_id"], row["set"]) for row in rows] == [(f"video{2 + k}", str(1 + k // 2)) for k in range(8)]
    assert len({row["key"] for row in rows}) == 8
    lines = [path.read_text() for path in (folder / "testTrainMulti_7030_splits").glob("*_split1.txt")]
    tested = {line.split()[0] for text in lines for line in text.splitlines() if line.split()[1] == "2"}
    assert tested == {f"{row['video_id']}.mp4" for row in rows}


def test_a_set_has_the_same_videos_whatever_its_size_and_the_others():
    def rendered(**counts):
        settings = make_toy_dataset.DatasetSettings(num_train=2, num_frames=2, **counts)
        return [video.frames.tobytes() for video in make_toy_dataset.render_split(settings, "test")]

    whole, small = rendered(), rendered(num_test=4)
    assert small == [frames for number in range(4) for frames in whole[108 * number : 108 * number + 4]]
    assert rendered(num_test_sets=1) == whole[:108]


DRAWN = {("motions", 2): "340cc34d53fb0bd3", ("events", 1): "51b1fbc74fcb209d"}  # by level and version of its renderer


@pytest.mark.parametrize("level", list(LEVELS))
def test_another_picture_needs_another_version_of_the_renderer(level):
    """Files that older code made are kept while their settings are the same, and the version is one of these."""
    drawn, level = hashlib.sha256(), LEVELS[level]
    for pair in range(len(level.motions) // 2):
        rng = np.random.default_rng(pair)
        for video in level.render_pair(rng, pair % level.colours, pair % 3, pair, level.num_frames):
            drawn.update(video.frames.tobytes())
    for done in (0.0, 1.0):
        drawn.update(level.render_stills(np.random.default_rng(1), 8, done).images.tobytes())
    found = drawn.hexdigest()[:16]
    assert DRAWN[level.name, level.renderer_version] == found, "raise RENDERER_VERSION and note what it draws here"
