"""A run that loads by itself: the model that was trained, and the embeddings that its program gives."""

import logging
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.settings import setting
from dataloaders.video.decoding import BadVideoError
from helpers.flags import path_of
from helpers.paths import shared_data
from helpers.runs import checkpoint, run
from helpers.tiny import TINY_TRAINING, make_tiny_clip, save_clip_folder
from modules.methods import METHODS
from modules.methods.stop.stop import StopSettings
from modules.program.loading import load_run


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading") / "run"
    assert run(tiny_run, folder, *TINY_TRAINING, "--save_features", str(folder / "features")) == 0
    return folder


@pytest.fixture(scope="module")
def videos(tiny_run, trained):
    names = (trained / "features" / "video_ids.txt").read_text().splitlines()
    return [path_of(tiny_run, "--features_path") / f"{name}.mp4" for name in names]


def test_a_folder_or_checkpoint_is_all_that_is_needed(trained, videos):
    for source in (trained, str(trained / "best.pt")):
        loaded = load_run(source)
        assert (loaded.method, loaded.max_frames, loaded.max_words) == ("stop", 4, 12)
        assert (loaded.settings.spatial_width, loaded.settings.prompt_dropout) == (8, 0.2)
        assert not loaded.model.training
        captions = (trained / "features" / "captions.txt").read_text().splitlines()
        text, video = loaded.embed_texts(captions), loaded.embed_videos(videos, num_workers=0)
        assert text.dtype == video.dtype == np.float32
        np.testing.assert_allclose(video, np.load(trained / "features" / "video.npy"), atol=1e-6)
        np.testing.assert_allclose(text, np.load(trained / "features" / "text.npy"), atol=1e-6)


def test_a_method_that_trains_nothing_needs_no_training(tiny_run, videos):
    clip = path_of(tiny_run, "--pretrained_clip_name")
    loaded = load_run(method="zero_shot", clip=clip, max_frames=4, max_words=12)
    assert loaded.embed_videos(videos[:2], num_workers=0).shape == loaded.embed_texts(["a", "b"]).shape == (2, 16)
    assert loaded.embed_videos([]).shape == loaded.embed_texts([]).shape == (0, 16)
    with pytest.raises(UserError, match="method stop needs a training"):
        load_run(method="stop", clip=clip)
    with pytest.raises(UserError, match="one of the two"):
        load_run()


def test_bad_videos_are_named_and_skipped_only_where_asked(trained, videos, tmp_path, caplog):
    loaded = load_run(trained)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(videos[0].read_bytes()[:200])
    paths = [videos[0], broken, tmp_path / "none.mp4", videos[1]]
    for bad in (broken, tmp_path / "none.mp4"):
        with pytest.raises(BadVideoError, match=bad.name):
            loaded.embed_videos([videos[0], bad], num_workers=0)
    with pytest.raises(BadVideoError, match='give on_bad="skip"'):
        loaded.embed_videos(broken, num_workers=0)
    logging.getLogger("stop").propagate = True
    with caplog.at_level(logging.WARNING):
        rows = loaded.embed_videos(paths, on_bad="skip", num_workers=0)
    assert np.isnan(rows).all(1).tolist() == [False, True, True, False]
    np.testing.assert_array_equal(rows[[0, 3]], loaded.embed_videos([videos[0], videos[1]], num_workers=0))
    assert "broken.mp4 is left out" in caplog.text and "none.mp4 is left out: there is no such file" in caplog.text
    assert np.isnan(loaded.embed_videos([broken], on_bad="skip", num_workers=0)).all()


def test_a_clip_that_has_moved_is_given_and_another_is_refused(tiny_run, trained, videos, tmp_path):
    content = checkpoint(trained, "best.pt")
    content["clip_name"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "best.pt")
    with pytest.raises(UserError, match="if it has moved, give clip="):
        load_run(tmp_path / "best.pt")
    clip = path_of(tiny_run, "--pretrained_clip_name")
    same = load_run(tmp_path, clip=clip).embed_texts(["a red circle"])
    np.testing.assert_array_equal(same, load_run(trained, clip=make_tiny_clip()).embed_texts(["a red circle"]))
    other = save_clip_folder(tmp_path / "other", make_tiny_clip(1).model)
    with pytest.raises(UserError, match=f"clip: was .*, is {other}"):
        load_run(trained, clip=other)


@dataclass(frozen=True)
class LaterSettings(StopSettings):
    """STOP's, and one that there was not when the checkpoint was made."""

    later: str = setting("new", "what is done since", ("old", "new"), former="old")


@pytest.fixture
def later(monkeypatch):
    """STOP with a setting more; what it was when a model was built."""
    built = []

    def build(clip, settings, *sizes):
        built.append(settings.later)
        return METHODS["zero_shot_of_later"].build(clip, settings, *sizes)

    monkeypatch.setitem(METHODS, "zero_shot_of_later", METHODS["stop"])
    monkeypatch.setitem(METHODS, "stop", replace(METHODS["stop"], settings=LaterSettings, build=build))
    return built


def test_a_checkpoint_that_lacks_a_setting_is_read_with_its_former_value(tiny_run, trained, tmp_path, later, capsys):
    assert load_run(trained).settings.later == "old"
    flags = ["--do_eval", "--init_model", str(trained)]
    assert run(tiny_run, tmp_path / "eval", *flags) == 0
    assert later == ["old", "old"]
    assert run(tiny_run, tmp_path / "eval", *flags, "--later", "new") == 1
    assert "--later new, trained with old" in capsys.readouterr().err
    # a training goes on as it was, and with the new default only if it is told so
    copied = shutil.copytree(trained, tmp_path / "copy")
    assert run(tiny_run, copied, *TINY_TRAINING, "--later", "old") == 0
    assert run(tiny_run, copied, *TINY_TRAINING) == 1
    assert "later: was old, is new" in capsys.readouterr().err


def test_two_runs_on_one_clip_do_not_change_each_other(tiny_run, videos, tmp_path):
    flags = ["--do_train", "--method", "clip4clip", "--lr", "0.1", "--coef_lr", "1", "--epochs", "1"]
    flags += ["--batch_size", "6"]
    assert run(tiny_run, tmp_path, *flags) == 0
    clip = make_tiny_clip()
    zero_shot = load_run(method="zero_shot", clip=clip, max_frames=4, max_words=12)
    before = zero_shot.embed_videos(videos[:2], num_workers=0)
    state = torch.random.get_rng_state()
    runs = [load_run(tmp_path, clip=clip) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state)
    tuned = [loaded.embed_videos(videos[:2], num_workers=0) for loaded in runs]
    np.testing.assert_array_equal(*tuned)
    np.testing.assert_array_equal(zero_shot.embed_videos(videos[:2], num_workers=0), before)
    assert np.abs(tuned[0] - before).max() > 1e-3


def test_what_is_no_run_is_said(tmp_path, trained):
    with pytest.raises(UserError, match=r"holds no best\.pt"):
        load_run(tmp_path)
    (tmp_path / "split1").mkdir()
    (tmp_path / "split1" / "best.pt").write_bytes((trained / "best.pt").read_bytes())
    with pytest.raises(UserError, match=r"such as .*split1"):
        load_run(tmp_path)
    (tmp_path / "best.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_run(tmp_path)


def test_texts_that_are_cut_are_told(trained, caplog):
    logging.getLogger("stop").propagate = True
    with caplog.at_level(logging.WARNING):
        load_run(trained).embed_texts(["word " * 50, "a"])
    assert "1 of 2 texts were cut to 12 tokens" in caplog.text


def test_real_clips_of_any_container_are_embedded(trained):
    clips = sorted(path for path in shared_data("videos").iterdir() if path.suffix in (".mp4", ".avi", ".mkv", ".webm"))
    rows = load_run(trained).embed_videos(clips[:6], on_bad="skip", num_workers=2)
    good = ~np.isnan(rows).any(1)
    assert good.sum() >= 3
    np.testing.assert_allclose(np.linalg.norm(rows[good], axis=1), 1, atol=1e-5)
