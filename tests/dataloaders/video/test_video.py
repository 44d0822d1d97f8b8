"""Frame sampling, decoding with either library, and preprocessing."""

import multiprocessing
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from dataloaders.video import decoding
from dataloaders.video.decoding import BadVideoError, read_video
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.sampling import sample_frame_indices
from helpers.paths import SHARED_DATA
from helpers.videos import clip_facts, damage, picture, read_numbers, write_video

VIDEOS = SHARED_DATA / "videos"
needs_clips = pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"real clips are not at {VIDEOS}")
needs_decord = pytest.mark.skipif(decoding.decord is None, reason="decord has no wheel for this platform")


def remux(source, target, options, shift=0):
    """The same packets, `shift` frames earlier, in another file."""
    with av.open(str(source)) as before, av.open(str(target), "w", options=options) as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.dts is not None:
                ticks = int(Fraction(shift, 25) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                after.mux(packet)
    return target


@pytest.fixture(params=["decord", "opencv"])
def library(request, monkeypatch):
    """Runs a test with both libraries present, and as on a platform without decord."""
    if request.param == "opencv":
        monkeypatch.setattr(decoding, "decord", None)
    elif decoding.decord is None:
        pytest.skip("decord has no wheel for this platform")
    return request.param


# Sampling


@pytest.mark.parametrize("total, num_frames", [(24, 8), (13, 12), (300, 12), (1000, 64), (7, 3), (5, 1)])
def test_sampled_frames_lie_in_their_segments(total, num_frames):
    rng = np.random.default_rng(0)
    centres = sample_frame_indices(total, num_frames)
    assert (np.diff(centres) > 0).all()
    drawn = np.stack([sample_frame_indices(total, num_frames, rng) for _ in range(50)])
    assert (np.diff(drawn, axis=1) > 0).all()
    for i in range(num_frames):
        start, end = Fraction(i * total, num_frames), Fraction((i + 1) * total, num_frames)
        assert abs(centres[i] + Fraction(1, 2) - (start + end) / 2) <= Fraction(1, 2)  # no frame is nearer the middle
        assert all(start <= frame < end for frame in drawn[:, i].tolist())


def test_every_frame_can_be_drawn_in_training():
    rng = np.random.default_rng(0)
    drawn = {i for _ in range(300) for i in sample_frame_indices(31, 8, rng).tolist()}
    assert drawn == set(range(31))


def test_a_reversed_clip_gives_the_reversed_frames():
    for total, num_frames in [(24, 8), (36, 12), (300, 12), (35, 7)]:  # segments with a frame in their middle
        centres = sample_frame_indices(total, num_frames)
        assert (total - 1 - centres)[::-1].tolist() == centres.tolist()
    assert sample_frame_indices(24, 8).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]


@pytest.mark.parametrize("total", [1, 5, 12])
def test_a_short_clip_gives_all_of_its_frames(total):
    for rng in (None, np.random.default_rng(0)):
        assert sample_frame_indices(total, 12, rng).tolist() == list(range(total))


def test_draws_depend_on_the_generator_only():
    first, second = (sample_frame_indices(300, 12, np.random.default_rng(3)) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert first.tolist() != sample_frame_indices(300, 12, np.random.default_rng(4)).tolist()


@pytest.mark.parametrize("total, num_frames", [(0, 12), (10, 0), (-1, 3)])
def test_nothing_to_sample_is_refused(total, num_frames):
    with pytest.raises(ValueError, match="cannot sample"):
        sample_frame_indices(total, num_frames)


# Decoding

OPEN_GOP = {"x264-params": "open-gop=1:b-adapt=0:bframes=3:scenecut=0"}
KINDS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "h264.avi": {},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "stream.ts": {},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4_b.avi": {"codec": "mpeg4", "b_frames": 2},
    "mpeg4_b.mp4": {"codec": "mpeg4", "b_frames": 2},
    "one_key_frame.mp4": {"gop": 500},
    "vp8.webm": {"codec": "libvpx"},
    "capital.MP4": {},
    "narrow.mp4": {"width": 48},  # decord 0.6 opens it and fails in reading
    "upright.mp4": {"width": 64, "height": 128},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("num_frames", [5, 12, 40])
def test_the_frames_that_were_sampled_are_the_ones_returned(tmp_path, library, name, num_frames):
    path = write_video(tmp_path / name, **KINDS[name])
    frames, num_real = read_video(path, num_frames)
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (KINDS[name].get("height", 64), KINDS[name].get("width", 128), 3)
    assert num_real == num_frames
    assert read_numbers(frames) == sample_frame_indices(40, num_frames).tolist()


def test_colours_are_in_the_order_red_green_blue(tmp_path, library):
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        red = np.zeros((64, 128, 3), np.uint8)
        red[..., 0] = 255
        container.mux(stream.encode(av.VideoFrame.from_ndarray(red, "rgb24")))
        container.mux(stream.encode())
    frames, _ = read_video(path, 1)
    assert frames[..., 0].mean() > 200
    assert frames[..., 1:].mean() < 50


def test_a_short_clip_is_padded_with_zeros(tmp_path, library):
    frames, num_real = read_video(write_video(tmp_path / "short.mp4", frames=7), 12)
    assert (len(frames), num_real) == (12, 7)
    assert read_numbers(frames[:7]) == list(range(7))
    assert not frames[7:].any()


def test_the_sampler_decides(tmp_path, library):
    path = write_video(tmp_path / "clip.mp4")
    frames, num_real = read_video(path, 4, lambda total, num_frames: np.array([0, total - 1]))
    assert (len(frames), num_real) == (4, 2)
    assert read_numbers(frames[:2]) == [0, 39]


def test_random_frames_do_not_depend_on_the_library(tmp_path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4")

    def draw(total, num_frames):
        return sample_frame_indices(total, num_frames, np.random.default_rng(5))

    frames, _ = read_video(path, 8, draw)
    monkeypatch.setattr(decoding, "decord", None)
    assert np.array_equal(frames, read_video(path, 8, draw)[0])


def test_opencv_converts_sampled_frames_only(tmp_path, monkeypatch):
    converted = []
    cvt_color = decoding.cv2.cvtColor
    monkeypatch.setattr(decoding.cv2, "cvtColor", lambda *args: converted.append(1) or cvt_color(*args))
    monkeypatch.setattr(decoding, "decord", None)
    read_video(write_video(tmp_path / "clip.mp4", frames=200), 6)
    assert len(converted) == 6


@needs_decord
def test_a_trimmed_clip_begins_at_its_first_visible_frame(tmp_path):
    # An MP4 hides what would play before its time zero, and keeps it for the frames that build on it.
    options = {"avoid_negative_ts": "disabled"}
    path = remux(write_video(tmp_path / "whole.mp4"), tmp_path / "trimmed.mp4", options, shift=7)
    frames, num_real = read_video(path, 40)
    assert num_real == 33
    assert read_numbers(frames[:33]) == list(range(7, 40))


# Bad videos


@pytest.mark.parametrize("name", ["h264.mkv", "mpeg4.avi", "mpeg4_b.avi", "vp8.webm", "h264.avi"])
@pytest.mark.parametrize("keep_length", [False, True])
@pytest.mark.parametrize("num_frames", [1, 12])
def test_a_clip_that_breaks_off_is_bad_and_not_short(tmp_path, library, name, keep_length, num_frames):
    path = write_video(tmp_path / name, **KINDS[name])
    damage(path, 0.6, keep_length)
    with pytest.raises(BadVideoError) as caught:
        read_video(path, num_frames)
    assert caught.value.path == path
    assert "OpenCV" in caught.value.reason
    assert ("decord" in caught.value.reason) == (library == "decord")


@pytest.mark.parametrize("keep_length", [False, True])
def test_an_mp4_with_its_index_first_that_breaks_off_is_bad(tmp_path, library, keep_length):
    options = {"movflags": "faststart"}
    path = remux(write_video(tmp_path / "plain.mp4"), tmp_path / "streamable.mp4", options=options)
    assert read_video(path, 12)[1] == 12
    damage(path, 0.7, keep_length)
    with pytest.raises(BadVideoError):
        read_video(path, 1)


def test_what_is_no_video_is_bad(tmp_path, library):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all" * 100)
    for name, reason in [
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "OpenCV"),
        ("gone.mp4", "no such file"),
        ("", "dir"),
    ]:
        with pytest.raises(BadVideoError, match=reason):
            read_video(tmp_path / name, 12)


def test_a_mistake_in_the_sampler_is_not_blamed_on_the_video(tmp_path, library):
    def sample(total, num_frames):
        raise KeyError("mistake")

    with pytest.raises(KeyError, match="mistake"):
        read_video(write_video(tmp_path / "clip.mp4"), 12, sample)


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(BadVideoError(Path("a.mp4"), "breaks off")))
    assert (error.path, error.reason, str(error)) == (Path("a.mp4"), "breaks off", "a.mp4: breaks off")


class _Clips(torch.utils.data.Dataset):
    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return read_video(self.paths[index], 12)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="starting workers takes long")
def test_workers_decode_and_pass_on_the_error(tmp_path):
    good = write_video(tmp_path / "good.mp4")
    read_video(good, 12)  # the parent has decoded before it forks
    loader = torch.utils.data.DataLoader(
        _Clips([good, tmp_path / "gone.mp4"]), batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    batches = iter(loader)
    assert next(batches)[1] == 12
    with pytest.raises(BadVideoError, match=r"gone\.mp4: no such file"):
        next(batches)


# Real clips


@needs_clips
@needs_decord
@pytest.mark.parametrize("name", clip_facts())
def test_the_libraries_agree_on_real_clips(monkeypatch, name):
    total, height, width = clip_facts()[name]
    totals = []

    def sample(total, num_frames):
        totals.append(total)
        return sample_frame_indices(total, num_frames)

    frames, num_real = read_video(VIDEOS / name, 12, sample)
    assert totals == [total]  # decord did not fail
    assert frames.shape == (12, height, width, 3)
    assert num_real == min(total, 12)
    monkeypatch.setattr(decoding, "decord", None)
    others, num_other = read_video(VIDEOS / name, 12, sample)
    assert totals[-1] == total
    assert num_other == num_real
    for frame, other in zip(frames, others, strict=True):
        assert np.abs(frame.astype(np.int16) - other).max() <= 2


@needs_clips
@pytest.mark.parametrize("num_frames", [1, 4, 12, 64])
def test_the_damaged_real_clip_is_bad_whichever_frames_are_sampled(library, num_frames):
    with pytest.raises(BadVideoError, match="breaks off after 28 of 50 frames"):
        read_video(VIDEOS / "corrupted.mp4", num_frames)


# Preprocessing


SIZES = [(240, 426), (426, 240), (1080, 1920), (50, 50), (224, 300), (225, 224), (37, 211), (256, 341)]


@pytest.mark.parametrize("height, width", SIZES)
def test_preprocessing_is_clips_own(height, width):
    from open_clip import image_transform

    frames = picture(height, width)
    clip_transform = image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = clip_transform(Image.fromarray(frames[0])) * 255  # (3, 224, 224)
    ours = resize_and_crop(frames, 224)
    assert ours.shape == (1, 3, 224, 224)
    assert ours.dtype == torch.uint8
    assert (ours[0] - expected).abs().max() <= 2


def test_a_clip_at_the_target_size_is_not_resampled():
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 50, 3), dtype=np.uint8)
    cropped = torch.from_numpy(frames[:, :, 9:41].copy()).permute(0, 3, 1, 2)
    assert torch.equal(resize_and_crop(frames, 32), cropped)
    square = frames[:, :, :32]  # a view, not contiguous
    assert torch.equal(resize_and_crop(square, 32), torch.from_numpy(square.copy()).permute(0, 3, 1, 2))


@pytest.mark.parametrize("length", [32, 33, 34, 35, 36, 51, 90, 700])
def test_what_is_only_cropped_is_cropped_where_torchvision_does(length):
    generator = np.random.default_rng(length)
    for shape in ((2, 32, length, 3), (2, length, 32, 3)):
        frames = generator.integers(0, 256, shape, dtype=np.uint8)
        turned = torch.from_numpy(frames).permute(0, 3, 1, 2)
        assert torch.equal(resize_and_crop(frames, 32), transforms.center_crop(turned, [32, 32]))
        assert torch.equal(resize_and_crop(frames, 32, 0), turned[..., :32, :32])
        assert torch.equal(resize_and_crop(frames, 32, 1), turned[..., -32:, -32:])
        backwards = frames[:, ::-1, :, ::-1]  # strides that OpenCV does not take
        assert torch.equal(resize_and_crop(backwards, 32), resize_and_crop(backwards.copy(), 32))


def test_frames_are_preprocessed_one_by_one():
    frames = np.concatenate([picture(60, 90, seed) for seed in range(3)])
    together = resize_and_crop(frames, 32)
    assert torch.equal(together, torch.cat([resize_and_crop(frame[None], 32) for frame in frames]))
    assert resize_and_crop(frames[:0], 32).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8)],
    ids=["float", "one frame", "channels first"],
)
def test_other_arrays_are_refused(frames):
    with pytest.raises(ValueError, match="must be"):
        resize_and_crop(frames, 224)
