"""The toy world: exact time reversals, annotation files in MSR-VTT's form, a pre-trained CLIP that loads."""

import filecmp
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.runs import rows_of
from preprocess import make_toy_dataset, pretrain_toy_clip
from preprocess.toy import shapes as toy

SETTINGS = make_toy_dataset.DatasetSettings(num_train=4, num_test_sets=1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_toy_dataset.make_dataset(tmp_path_factory.mktemp("toy") / "dataset", SETTINGS)


def annotations(dataset):
    return json.loads((dataset / "MSRVTT_data.json").read_text())


def decode_with_decord(path):
    decord = pytest.importorskip("decord")
    return decord.VideoReader(str(path), num_threads=1)[:].asnumpy()


def decode_with_opencv(path):
    cv2 = pytest.importorskip("cv2")
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return np.stack(frames)


# --- words and drawings -------------------------------------------------------------------------------------


def test_every_object_and_motion_has_a_caption_of_its_own():
    captions = toy.all_motion_captions()
    assert len(captions) == len(set(captions)) == len(toy.COLOURS) * len(toy.SHAPES) * len(toy.MOTIONS) == 108


@pytest.mark.parametrize("shape", range(len(toy.SHAPES)))
def test_shapes_move_with_subpixel_precision(shape):
    # The centroid of what is covered follows the centre, or movements would be jerky.
    x, y = np.array([25.0, 25.25, 25.5]), np.array([30.0, 30.5, 30.75])
    covered = toy.coverage(np.full(3, shape), x, y, np.full(3, 8.0))
    grid, mass = np.arange(toy.IMAGE_SIZE), covered.sum(axis=(1, 2))
    across = (covered.sum(axis=1) * grid).sum(axis=1) / mass
    down = (covered.sum(axis=2) * grid).sum(axis=1) / mass
    np.testing.assert_allclose(across - across[0], x - x[0], atol=0.03)
    np.testing.assert_allclose(down - down[0], y - y[0], atol=0.03)
    assert covered.min() == 0 and covered.max() == 1


@pytest.mark.parametrize("motion", range(len(toy.MOTIONS)))
def test_paths_do_what_the_motion_says(motion):
    paths = toy.sample_paths(np.random.default_rng(0), np.full(50, motion), 8)
    changes = [path[:, -1] - path[:, 0] for path in paths]
    expected = {
        "moving left": (-1, 0, 0),
        "moving right": (1, 0, 0),
        "moving up": (0, -1, 0),
        "moving down": (0, 1, 0),
        "growing": (0, 0, 1),
        "shrinking": (0, 0, -1),
    }[toy.MOTIONS[motion]]
    for change, sign in zip(changes, expected, strict=True):
        assert (np.sign(change) == sign).all()


def test_pictures_lie_inside_the_frame():
    motion = np.tile(np.arange(len(toy.MOTIONS)), 100)
    x, y, radius = toy.sample_paths(np.random.default_rng(0), motion, 8)
    for centre in (x, y):
        assert (centre - radius >= 0).all() and (centre + radius <= toy.IMAGE_SIZE - 1).all()


# --- dataset ------------------------------------------------------------------------------------------------


def test_distractor_is_still_unmentioned_and_of_another_colour():
    for video in make_toy_dataset.render_split(SETTINGS, "test"):
        colours = list(toy.COLOURS)
        distractor = colours[video.distractor_colour]
        assert distractor not in video.caption and colours[video.colour] in video.caption
        seen = (video.frames == np.array(toy.COLOURS[distractor])).all(axis=-1)  # (T, S, S)
        assert seen.sum(axis=(1, 2)).min() > 20
        touched = seen.any(axis=0) != seen.all(axis=0)
        assert touched.mean() < 0.02  # still, though the object may pass in front of its edge


def test_test_split_shows_every_class_once():
    captions = [video.caption for video in make_toy_dataset.render_split(SETTINGS, "test")]
    assert sorted(captions) == sorted(toy.all_motion_captions())


def test_training_classes_are_balanced():
    settings = replace(SETTINGS, num_train=216, num_frames=2)
    captions = [video.caption for video in make_toy_dataset.render_split(settings, "train")]
    assert sorted(captions) == sorted(2 * toy.all_motion_captions())


def test_training_and_test_scenes_differ():
    splits = (make_toy_dataset.render_split(replace(SETTINGS, num_test=4), split) for split in ("train", "test"))
    for train, test in zip(*splits, strict=True):
        assert train.caption == test.caption and (train.frames != test.frames).any()


@pytest.mark.parametrize("decode", [decode_with_decord, decode_with_opencv])
def test_opposite_motions_decode_to_each_other_backwards(dataset, decode):
    for split in ("train", "test"):
        videos = [video["video_id"] for video in annotations(dataset)["videos"] if video["split"] == split]
        for first, second in [(videos[i], videos[i + 1]) for i in range(0, len(videos), 26) if i + 1 < len(videos)]:
            forwards, backwards = (decode(dataset / "videos" / f"{name}.mp4") for name in (first, second))
            assert forwards.shape == (SETTINGS.num_frames, toy.IMAGE_SIZE, toy.IMAGE_SIZE, 3)
            np.testing.assert_array_equal(forwards, backwards[::-1])
            assert (forwards != backwards).any()


def test_decoded_frames_show_what_was_rendered(dataset):
    rendered = next(make_toy_dataset.render_split(SETTINGS, "train")).frames.astype(float)
    decoded = decode_with_decord(dataset / "videos" / "video0.mp4")
    assert np.abs(decoded - rendered).mean() < 4  # chroma is stored at half the resolution


def test_annotations_have_the_published_form(dataset):
    data = annotations(dataset)
    ids = [video["video_id"] for video in data["videos"]]
    assert len(ids) == len(set(ids)) == SETTINGS.num_train + SETTINGS.num_test
    for video in data["videos"]:
        assert set(video) == {"category", "url", "video_id", "start time", "end time", "split", "id"}
        assert (dataset / "videos" / f"{video['video_id']}.mp4").stat().st_size > 0
    for sentence in data["sentences"]:
        assert set(sentence) == {"caption", "video_id", "sen_id"}

    train, test = rows_of(dataset / "train.csv"), rows_of(dataset / "test.csv")
    split = {video["video_id"]: video["split"] for video in data["videos"]}
    caption = {sentence["video_id"]: sentence["caption"] for sentence in data["sentences"]}
    category = {video["video_id"]: video["category"] for video in data["videos"]}
    assert [set(row) for row in train] == [{"video_id"}] * SETTINGS.num_train
    assert all(split[row["video_id"]] == "train" for row in train)
    assert [list(row) for row in test] == [["key", "vid_key", "video_id", "sentence"]] * SETTINGS.num_test
    assert all(split[row["video_id"]] == "test" and caption[row["video_id"]] == row["sentence"] for row in test)
    assert all(text.endswith(toy.MOTIONS[category[video]]) for video, text in caption.items())


def test_making_it_again_gives_the_same_bytes(dataset, tmp_path):
    few = replace(SETTINGS, num_test=2)
    one, two = (make_toy_dataset.make_dataset(tmp_path / name, few) for name in ("one", "two"))
    names = [str(path.relative_to(one)) for path in sorted(one.rglob("*")) if path.is_file()]
    assert len(names) == 6 + 4 + 18  # videos, annotation files in MSR-VTT's form, splits in HMDB51's
    _, different, missing = filecmp.cmpfiles(one, two, names, shallow=False)
    assert (different, missing) == ([], [])
    # A video depends on its own place alone, not on how many there are.
    assert filecmp.cmp(one / "videos/video5.mp4", dataset / "videos/video5.mp4", shallow=False)


def test_other_settings_are_refused_unless_overwritten(tmp_path):
    few = replace(SETTINGS, num_train=2, num_test=2, num_frames=2)
    folder = make_toy_dataset.make_dataset(tmp_path / "dataset", few)
    before = (folder / "videos/video0.mp4").stat().st_mtime_ns
    make_toy_dataset.make_dataset(folder, few)
    assert (folder / "videos/video0.mp4").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="--overwrite"):
        make_toy_dataset.make_dataset(folder, replace(few, seed=1))
    make_toy_dataset.make_dataset(folder, replace(few, seed=1), overwrite=True)
    assert json.loads((folder / "dataset.json").read_text())["settings"]["seed"] == 1


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_toy_dataset, "write_video", stop)
    with pytest.raises(KeyboardInterrupt):
        make_toy_dataset.make_dataset(tmp_path / "dataset", SETTINGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("counts", [{"num_train": 3}, {"num_test": 0}, {"num_test": 110}])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError):
        make_toy_dataset.DatasetSettings(**counts)


# --- toy CLIP -----------------------------------------------------------------------------------------------


def test_stills_use_the_captions_of_the_videos_and_the_class_prompts():
    stills = toy.render_stills(np.random.default_rng(0), 600)
    videos, prompts = set(toy.all_motion_captions()), {toy.class_caption(k) for k in range(len(toy.MOTIONS))}
    trails = [caption for caption, motion in zip(stills.captions, stills.motion, strict=True) if motion >= 0]
    assert len(trails) == 300
    assert set(trails) <= videos | prompts and prompts <= set(trails)
    assert not (set(stills.captions) - set(trails)) & (videos | prompts)


def test_true_captions_are_no_negatives():
    stills = toy.render_stills(np.random.default_rng(0), 300)
    true = pretrain_toy_clip.true_captions(stills)
    for i in range(300):
        for j in range(300):
            fits = stills.captions[i] == stills.captions[j]
            if stills.motion[i] >= 0:
                k = (stills.colour[i], stills.shape[i], stills.motion[i])
                fits |= stills.captions[j] in (toy.motion_caption(*k), toy.class_caption(stills.motion[i]))
            assert bool(true[i, j]) == fits


def test_loss_ignores_pairs_that_are_true():
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(4, 8), dim=-1) for _ in range(2))
    true = torch.eye(4, dtype=torch.bool)
    true[0, 1] = True
    logits, terms = 10 * image @ text.T, []
    for i in range(4):
        row = [logits[i, j] for j in range(4) if j == i or not true[i, j]]
        column = [logits[j, i] for j in range(4) if j == i or not true[j, i]]
        terms += [torch.stack(line).logsumexp(0) - logits[i, i] for line in (row, column)]
    loss = pretrain_toy_clip.contrastive_loss(image, text, torch.tensor(10.0), true)
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_indistinguishable_captions_are_an_error():
    embeddings = torch.eye(3)
    assert pretrain_toy_clip.check_captions(embeddings, ["a", "b", "c"], max_cosine=0.9) == pytest.approx(0)
    embeddings[2] = 3 * embeddings[0]
    with pytest.raises(pretrain_toy_clip.UnusableModel, match='"a" from "c"'):
        pretrain_toy_clip.check_captions(embeddings, ["a", "b", "c"], max_cosine=0.9)
    with pytest.raises(pretrain_toy_clip.UnusableModel):
        pretrain_toy_clip.check_captions(torch.full((2, 4), torch.nan), ["a", "b"], max_cosine=0.9)


def test_a_low_accuracy_is_an_error():
    bars = pretrain_toy_clip.Bars()
    found = {"motion": 1.0, "colour": 1.0, "shape": 1.0, "position": 1.0}
    pretrain_toy_clip.check_accuracies(found, bars)
    with pytest.raises(pretrain_toy_clip.UnusableModel, match=r"shape 0\.400"):
        pretrain_toy_clip.check_accuracies({**found, "shape": 0.4}, bars)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BRIEF = pretrain_toy_clip.PretrainSettings(steps=2, batch_size=8)


def test_an_untrained_model_is_not_saved(tmp_path, one_thread):
    with pytest.raises(pretrain_toy_clip.UnusableModel):
        pretrain_toy_clip.pretrain(tmp_path / "clip", BRIEF, pretrain_toy_clip.Bars())
    assert list(tmp_path.iterdir()) == []


def test_the_saved_folder_loads_in_open_clip_and_computes_the_same(tmp_path, one_thread):
    import open_clip

    no_bars = pretrain_toy_clip.Bars(motion=0, colour=0, shape=0, position=0, max_cosine=2)
    folder = pretrain_toy_clip.pretrain(tmp_path / "clip", BRIEF, no_bars)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    trained = pretrain_toy_clip.train(BRIEF)  # the same steps once more give the same model

    captions = toy.all_motion_captions()[:3]
    stills = toy.render_stills(np.random.default_rng(7), 4)
    assert tokenizer(captions).shape == (3, 20)
    with torch.no_grad():
        text = model.eval().encode_text(tokenizer(captions), normalize=True)
        torch.testing.assert_close(text, pretrain_toy_clip.embed_captions(trained, captions))
        images = pretrain_toy_clip.to_input(stills.images)
        torch.testing.assert_close(model.encode_image(images), trained.encode_image(images))

    from PIL import Image

    torch.testing.assert_close(transform(Image.fromarray(stills.images[0])), images[0])
    assert model.visual.image_size in (toy.IMAGE_SIZE, (toy.IMAGE_SIZE, toy.IMAGE_SIZE))
    before = (folder / pretrain_toy_clip.WEIGHTS_NAME).stat().st_mtime_ns
    pretrain_toy_clip.pretrain(folder, BRIEF, no_bars)
    assert (folder / pretrain_toy_clip.WEIGHTS_NAME).stat().st_mtime_ns == before


def test_the_splits_in_hmdb51s_form_hold_every_video_with_its_motion(dataset):
    motions = {video["video_id"]: toy.MOTIONS[video["category"]] for video in annotations(dataset)["videos"]}
    tested = {row["video_id"] for row in rows_of(dataset / "test.csv")}
    seen = {}
    for path in (dataset / "testTrainMulti_7030_splits").glob("*_test_split1.txt"):
        for line in path.read_text().splitlines():
            file, mark, end = line.split(" ")
            assert file.endswith(".mp4") and end == ""
            seen[file.removesuffix(".mp4")] = (path.name.split("_test_")[0].replace("_", " "), mark)
    assert seen.keys() == motions.keys()
    for video_id, (motion, mark) in seen.items():
        assert motion == motions[video_id] and mark == ("2" if video_id in tested else "1")
