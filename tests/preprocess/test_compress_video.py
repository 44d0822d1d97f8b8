"""Compressing videos: which frames, their size and orientation, damage, continuing where a run stopped."""

import csv
import json
import os
import shutil
import signal
import subprocess
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from common.files import lock_folder
from dataloaders.video.preparation import preparation_of
from helpers.launching import start
from helpers.paths import SHARED_DATA
from helpers.videos import indices_of, level_of, shown_at, write_clip
from preprocess import compress_video
from preprocess.compress_video import CompressSettings, compress, main, partial_path
from preprocess.frames import DamagedVideo, one_per_slot, presentation_times, target_size
from preprocess.jobs import plan

REAL_VIDEOS = SHARED_DATA / "videos"
needs_real_videos = pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason=f"no real clips at {REAL_VIDEOS}")
SETTINGS = CompressSettings()


def read_clip(path) -> tuple[list[float], list[np.ndarray]]:
    """The times (seconds) and luma planes (H, W) of a video."""
    times, planes = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(frame.time)
            planes.append(frame.to_ndarray(format="yuv420p")[: frame.height])
    return times, planes


def compressed_indices(source, settings=SETTINGS) -> list[int]:
    target = source.parent / "compressed" / "clip.mp4"
    compress(source, target, settings)
    return indices_of(read_clip(target)[1])


def run(input_root, output_root, *options) -> int:
    return main(["--input_root", str(input_root), "--output_root", str(output_root), "--num_workers", "1", *options])


def failures_in(output_root) -> dict[str, str]:
    with open(output_root / "failed_videos.csv", newline="", encoding="utf-8") as file:
        return {row["video"]: row["reason"] for row in csv.DictReader(file)}


def files_under(root) -> set[str]:
    """Names from the folder; without that of its lock."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


# --- Which frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(25), Fraction(30000, 1001), Fraction(24), Fraction(7, 2)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frame_k_is_the_one_shown_at_k_over_fps(tmp_path, rate, suffix):
    source = write_clip(tmp_path / f"clip{suffix}", 60, rate)
    times = [index / rate for index in range(60)]
    if suffix == ".mkv":  # rounded to milliseconds; a frame may have been shown half of one earlier
        times = [Fraction(round(time * 1000), 1000) - Fraction(1, 2000) for time in times]
    assert compressed_indices(source) == shown_at(times, 3, 60 / rate)
    times, _ = read_clip(tmp_path / "compressed" / "clip.mp4")
    assert np.allclose(times, np.arange(len(times)) / 3, atol=1e-3)


def test_slots_agree_with_the_definition_on_random_times():
    generator = np.random.default_rng(0)
    for fps in (Fraction(3), Fraction(1, 2), Fraction(25, 2)):
        steps = generator.integers(1, 900, size=200)
        times = [Fraction(int(step), 1000) for step in np.cumsum(steps) - steps[0]]
        interval = Fraction(1, 10)
        chosen = list(one_per_slot(zip(times, range(200), strict=True), fps, interval, Fraction(0)))
        assert [frame for _, _, frame in chosen] == shown_at(times, fps, times[-1] + interval)
        for slot, own_time, frame in chosen:
            assert own_time == times[frame] <= slot / fps


def test_a_slow_source_keeps_every_frame_once_at_its_own_time(tmp_path):
    source = write_clip(tmp_path / "slow.mp4", 9, rate=2)
    assert compressed_indices(source) == list(range(9))
    times, _ = read_clip(tmp_path / "compressed" / "clip.mp4")
    assert np.allclose(times, np.arange(9) / 2, atol=1e-3)


def test_variable_frame_rate_goes_by_time_not_by_index(tmp_path):
    # 30 frames in the first second, then 3 frames that stay on screen for half a second each
    timestamps = [*range(30), 30, 45, 60]
    source = write_clip(tmp_path / "variable.mkv", rate=30, timestamps=timestamps)
    assert compressed_indices(source) == [0, 10, 20, 30, 31, 32]


@pytest.mark.parametrize("fps", ["1", "6", "1/2", "0.5", "30"])
def test_other_rates(tmp_path, fps):
    source = write_clip(tmp_path / "clip.mp4", 60, 30)
    expected = shown_at([Fraction(index, 30) for index in range(60)], Fraction(fps), 2)
    assert compressed_indices(source, CompressSettings(fps=Fraction(fps))) == expected


@pytest.mark.parametrize("seconds", ["1", "0.5", "1/3", "7"])
def test_the_beginning_alone_can_be_kept(tmp_path, seconds):
    source = write_clip(tmp_path / "clip.mp4", 60, 30)
    times = [Fraction(index, 30) for index in range(60)]
    kept = [index for index in shown_at(times, 3, 2) if times[index] < Fraction(seconds)]
    assert compressed_indices(source, CompressSettings(max_seconds=Fraction(seconds))) == kept
    assert 1 <= len(kept) < 6 or seconds == "7"


def test_a_folder_of_whole_videos_is_not_gone_on_with_as_one_of_beginnings(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "clip.mp4")
    assert run(raw, out) == 0
    note = json.loads((out / "compress_video.json").read_text())
    del note["max_seconds"]  # a note of before there was the setting
    (out / "compress_video.json").write_text(json.dumps(note))
    assert run(raw, out) == 0
    assert '"max_seconds": "30"' in refusal(capsys, raw, out, "--max_seconds", "30")
    cut = tmp_path / "cut"
    assert run(raw, cut, "--max_seconds", "30") == 0
    assert preparation_of([cut / "clip.mp4"])["max_seconds"] == "30"
    assert "max_seconds" not in preparation_of([out / "clip.mp4"])


@pytest.mark.parametrize("num_frames", [1, 2])
def test_a_clip_shorter_than_a_slot_keeps_its_first_frame(tmp_path, num_frames):
    assert compressed_indices(write_clip(tmp_path / "short.mp4", num_frames)) == [0]


def test_dropped_frames_of_an_avi_are_no_damage(tmp_path):
    """Its header counts the dropped frames; FFmpeg stores them, as capture programs do, as nothing."""
    source = write_clip(tmp_path / "gaps.avi", codec="ffv1", timestamps=[*range(20), 40, 50, 60])
    content = bytearray(source.read_bytes())
    length = content.index(b"vids") + 32  # the stream header's count of frames
    assert int.from_bytes(content[length : length + 4], "little") == 61
    content[length : length + 4] = (61 + 40).to_bytes(4, "little")  # 40 dropped at the end
    source.write_bytes(content)
    assert compressed_indices(source) == [0, 10, 19, 20, 21, 22]


class Stamped:
    """A stand-in for a decoded frame."""

    time_base = Fraction(1, 25)

    def __init__(self, pts):
        self.pts = pts


def test_times_of_swapped_neighbours_are_put_in_order_but_frames_are_not():
    frames = [Stamped(pts) for pts in (1, 2, 4, 3, 5, 7, 6, 8)]
    timed = list(presentation_times(frames, Fraction(1, 25)))
    assert [frame for _, frame in timed] == frames
    assert [seconds * 25 for seconds, _ in timed] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_clock_that_starts_again_goes_on():
    frames = [Stamped(pts) for pts in (500, 501, 502, 0, 1, None, 3)]
    timed = list(presentation_times(frames, Fraction(1, 25)))
    assert [seconds * 25 for seconds, _ in timed] == [500, 501, 502, 503, 504, 505, 506]


# --- Size, orientation, pixels ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((1920, 1080), (398, 224)),
        ((1080, 1920), (224, 398)),
        ((500, 500), (224, 224)),
        ((321, 243), (296, 224)),
        ((224, 400), (224, 400)),
        ((100, 75), (100, 74)),  # smaller: not enlarged, only made even
        ((1, 1), (2, 2)),
    ],
)
def test_target_size(sides, expected):
    assert target_size(*sides, 224) == expected


@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "gray", "yuv444p", "bgr0"])
def test_other_pixel_formats_become_8_bit_420_with_the_same_grey(tmp_path, pix_fmt):
    source = write_clip(tmp_path / "clip.mkv", codec="ffv1", pix_fmt=pix_fmt, size=(400, 300))
    assert compressed_indices(source) == [0, 10, 20]
    with av.open(str(tmp_path / "compressed" / "clip.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 298, 224)


def test_sound_is_dropped(tmp_path):
    source = tmp_path / "sound.mp4"
    write_sound_and_picture(source)
    compress(source, tmp_path / "out.mp4", SETTINGS)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def write_sound_and_picture(path, picture=True):
    with av.open(str(path), "w") as output:
        if picture:
            video = output.add_stream("libx264", rate=30)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = output.add_stream("aac", rate=16000, layout="mono")
        if picture:
            for index in range(30):
                pixels = np.full((72, 64), level_of(index), np.uint8)
                output.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
            output.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        output.mux(sound.encode(samples))
        output.mux(sound.encode(None))


@needs_real_videos
@pytest.mark.parametrize("name", ["video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov", "demo.mp4"])
def test_compressed_frames_agree_with_opencv_reading_the_original(tmp_path, name):
    """OpenCV applies rotation tags and ignores the sample aspect ratio (demo.mp4's is 64:51)."""
    cv2 = pytest.importorskip("cv2")
    compress(REAL_VIDEOS / name, tmp_path / "out.mp4", CompressSettings(crf=10))
    _, original = cv2.VideoCapture(str(REAL_VIDEOS / name)).read()
    _, compressed = cv2.VideoCapture(str(tmp_path / "out.mp4")).read()
    height, width = compressed.shape[:2]
    assert min(height, width) == 224
    expected = cv2.resize(original, (width, height), interpolation=cv2.INTER_AREA)

    def difference(picture):
        return np.abs(picture.astype(float) - expected).mean()

    assert difference(compressed) < 3
    assert difference(compressed[::-1, ::-1]) > 5 * difference(compressed)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_a_rotation_tag_turns_the_pixels(tmp_path, angle):
    """The marked corner of the stored picture (top left) goes where a counter-clockwise turn puts it."""
    source = tmp_path / "tagged.mp4"
    stored = np.full((72, 64), 128, np.uint8)  # (H*3/2, W)
    stored[:48] = 40
    stored[:16, :16] = 200
    with av.open(str(source), "w") as output:
        stream = output.add_stream("libx264", rate=30)
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write rotation tags")
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(angle)
        output.mux(stream.encode(av.VideoFrame.from_ndarray(stored, format="yuv420p")))
        output.mux(stream.encode(None))
    compress(source, tmp_path / "out.mp4", SETTINGS)
    upright = read_clip(tmp_path / "out.mp4")[1][0]
    expected = np.rot90(stored[:48], angle // 90)
    assert upright.shape == expected.shape
    assert np.abs(upright.astype(int) - expected).mean() < 3


@needs_real_videos
@pytest.mark.parametrize(
    ("name", "num_frames", "rate"),
    [
        ("test.mp4", 300, Fraction(30)),
        ("test.avi", 164, Fraction(25)),  # packed B-frames: timestamps swapped
        ("flipping_a_pancake.mkv", 310, Fraction(30)),
        ("S001C001P001R001A001_rgb.avi", 103, Fraction(30)),
        ("unordered.mov", 4, Fraction(32)),
    ],
)
def test_frames_of_real_clips(tmp_path, name, num_frames, rate):
    compress(REAL_VIDEOS / name, tmp_path / "out.mp4", CompressSettings(crf=10))
    expected = shown_at([index / rate for index in range(num_frames)], 3, num_frames / rate)
    _, planes = read_clip(tmp_path / "out.mp4")
    assert len(planes) == len(expected)
    height, width = planes[0].shape
    wanted = {}
    with av.open(str(REAL_VIDEOS / name)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in expected:
                wanted[index] = frame.reformat(width, height, "yuv420p").to_ndarray()[:height]
    errors = [np.abs(plane.astype(float) - wanted[index]).mean() for plane, index in zip(planes, expected, strict=True)]
    others = [np.abs(plane.astype(float) - wanted[expected[0]]).mean() for plane in planes[1:]]
    assert max(errors) < 2.5
    assert all(other > error for other, error in zip(others, errors[1:], strict=True))


# --- Damage -------------------------------------------------------------------------------------------------


@needs_real_videos
def test_a_clip_that_breaks_off_is_a_failure(tmp_path):
    with pytest.raises(DamagedVideo, match="after 28 frames"):
        compress(REAL_VIDEOS / "corrupted.mp4", tmp_path / "out.mp4", SETTINGS)
    assert not list(tmp_path.iterdir())


def busy_clip(path, **options):
    """Two seconds of noise, so that a cut goes through picture data."""
    generator = np.random.default_rng(0)
    with av.open(str(path), "w", **options) as output:
        stream = output.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(60):
            pixels = generator.integers(16, 235, (72, 64), dtype=np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
        output.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".flv", ".avi"])
@pytest.mark.parametrize("kept", [0.3, 0.62])
def test_a_cut_file_is_a_failure(tmp_path, suffix, kept):
    header_first = {"movflags": "faststart"} if suffix in (".mp4", ".mov") else {}
    whole = busy_clip(tmp_path / f"clip{suffix}", container_options=header_first)
    compress(whole, tmp_path / "whole.mp4", SETTINGS)
    assert len(read_clip(tmp_path / "whole.mp4")[0]) == 6
    content = whole.read_bytes()
    whole.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(DamagedVideo):
        compress(whole, tmp_path / "out.mp4", SETTINGS)
    assert files_under(tmp_path) == {whole.name, "whole.mp4"}


def test_a_fragmented_file_is_whole_although_its_header_counts_no_frames(tmp_path):
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    clip = busy_clip(tmp_path / "clip.mp4", container_options=fragments)
    compress(clip, tmp_path / "out.mp4", SETTINGS)
    assert len(read_clip(tmp_path / "out.mp4")[0]) == 6


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_overwritten_data_is_a_failure(tmp_path, suffix):
    clip = busy_clip(tmp_path / f"clip{suffix}")
    content = bytearray(clip.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = bytes(6000)
    clip.write_bytes(content)
    with pytest.raises(DamagedVideo):
        compress(clip, tmp_path / "out.mp4", SETTINGS)


def test_a_cut_picture_that_the_decoder_would_patch_up_is_a_failure(tmp_path):
    clip = write_clip(tmp_path / "clip.avi", codec="mjpeg", pix_fmt="yuvj420p", size=(320, 240))
    with av.open(str(clip)) as container:
        last = [packet.pos for packet in container.demux(video=0) if packet.size][20]
    clip.write_bytes(clip.read_bytes()[: last + 400])
    with pytest.raises(DamagedVideo):
        compress(clip, tmp_path / "out.mp4", SETTINGS)


def test_a_stream_cut_out_of_a_longer_one_is_read_from_its_first_key_frame(tmp_path):
    """Its first packets refer to what is not there; that is no damage."""
    whole = write_clip(tmp_path / "whole.webm", 60, codec="libvpx-vp9", g="20", deadline="realtime")
    part = tmp_path / "part.webm"
    with av.open(str(whole)) as source, av.open(str(part), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if index >= 5 and packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    with av.open(str(part)) as container, pytest.raises(av.error.InvalidDataError):
        next(container.decode(video=0))
    assert compressed_indices(part) == [20, 30, 40, 50]


# --- A folder of videos -------------------------------------------------------------------------------------


def test_failures_are_listed_and_leave_nothing(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "good.mp4")
    (raw / "empty.mp4").touch()
    (raw / "text.avi").write_text("no video\n" * 100)
    (raw / "folder.mkv").mkdir()
    write_sound_and_picture(raw / "sound.mp4", picture=False)
    assert run(raw, out) == 1
    failures = failures_in(out)
    assert set(failures) == {"empty.mp4", "text.avi", "folder.mkv", "sound.mp4"}
    assert "directory" in failures["folder.mkv"] and "no video stream" in failures["sound.mp4"]
    assert files_under(out) == {"good.mp4", "compress_video.json", "failed_videos.csv"}
    printed = capsys.readouterr().out
    assert "1 compressed, 0 already there, 4 failed" in printed
    assert all(f"{name}: {reason}" in printed for name, reason in failures.items())

    for name in failures:
        path = raw / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert run(raw, out) == 0
    assert failures_in(out) == {}


def test_a_list_of_failures_that_cannot_be_written_is_said_and_the_one_before_stays(tmp_path, monkeypatch, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "good.mp4")
    (raw / "bad.mp4").touch()
    assert run(raw, out) == 1
    before = (out / "failed_videos.csv").read_bytes()
    (raw / "worse.mp4").touch()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        run(raw, out)
    printed = capsys.readouterr()
    assert error.value.code == 2 and "failed_videos.csv cannot be written: No space left on device" in printed.err
    assert "1 already there, 2 failed" in printed.out and "failed: worse.mp4" in printed.out
    assert (out / "failed_videos.csv").read_bytes() == before


def test_a_second_run_keeps_what_is_there_and_redoes_what_is_not(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name in ("a.mp4", "deep/er/b.avi", "c.mkv"):
        write_clip(raw / name, codec="mpeg4")
    assert run(raw, out) == 0
    (out / "c.mp4").unlink()
    partial = partial_path(out / "c.mp4")
    partial.write_bytes(b"half a video")
    gone = out / "deep" / ".of a source that is gone.mp4.partial"
    gone.write_bytes(b"half a video")
    before = {path: path.stat().st_mtime_ns for path in (out / "a.mp4", out / "deep/er/b.mp4")}
    capsys.readouterr()
    assert run(raw, out) == 0
    assert "1 compressed, 2 already there, 0 failed" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert indices_of(read_clip(out / "c.mp4")[1]) == [0, 10, 20]
    assert not partial.exists() and not gone.exists()


def test_what_another_process_writes_of_a_video_is_left_to_it(tmp_path, monkeypatch):
    source, target = write_clip(tmp_path / "raw" / "clip.mp4"), tmp_path / "out" / "clip.mp4"
    write, pid = compress_video.write_compressed, os.getpid()

    def write_beside_another(container, path, settings):
        write(container, path, settings)
        written = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(compress_video, "write_compressed", write)
            patch.setattr(os, "getpid", lambda: pid + 1)
            compress(source, target, settings)
        assert path.read_bytes() == written

    monkeypatch.setattr(compress_video, "write_compressed", write_beside_another)
    compress(source, target, SETTINGS)
    assert indices_of(read_clip(target)[1]) == [0, 10, 20]
    assert files_under(tmp_path / "out") == {"clip.mp4"}


def test_one_run_at_a_time(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "clip.mp4")
    out.mkdir()
    under_way = partial_path(out / "clip.mp4")
    under_way.write_bytes(b"half a video")
    with lock_folder(out):
        assert f"another run is compressing videos to {out}" in refusal(capsys, raw, out)
    assert files_under(out) == {under_way.name}
    assert run(raw, out) == 0


def test_names_with_odd_characters(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    stems = [
        "a b",
        "#1 & 2;(x)!",
        "100%d",
        "a:b",
        "file:c",
        "-d",
        "ünï ☃",
        "dots.in.name",
        "'quote\"",
        "$(x)`y`",
    ]
    for stem in stems:
        write_clip(raw / "plain.mp4").rename(raw / f"{stem}.mp4")
    stem = os.fsdecode(b"latin \xe9")
    try:
        write_clip(raw / "plain.mp4").rename(raw / f"{stem}.mp4")
        stems.append(stem)
    except OSError:
        (raw / "plain.mp4").unlink()  # a file system that wants UTF-8
    assert run(raw, out) == 0
    assert {path.stem for path in out.glob("*.mp4")} == set(stems)


def test_a_relative_name_with_a_colon_is_no_protocol(tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mp4").rename(tmp_path / "a:b.mp4")
    monkeypatch.chdir(tmp_path)
    compress(Path("a:b.mp4"), Path("c:d.mp4"), SETTINGS)
    assert indices_of(read_clip(tmp_path / "c:d.mp4")[1]) == [0, 10, 20]


def test_a_title_that_is_not_utf8(tmp_path):
    clip = tmp_path / "clip.mp4"
    with av.open(str(clip), "w") as output:
        output.metadata["title"] = "a title"
        stream = output.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        output.mux(stream.encode(None))
    clip.write_bytes(clip.read_bytes().replace(b"a title", b"\xe4 title"))
    compress(clip, tmp_path / "out.mp4", SETTINGS)


def test_hidden_files_and_other_files_are_no_videos(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "clip.MP4".lower()).rename(raw / "Clip.MP4")
    (raw / "._Clip.MP4").write_bytes(b"what macOS leaves beside files")
    write_clip(raw / ".Trash" / "removed.mp4", 1)
    (raw / "readme.txt").touch()
    (raw / "loop").symlink_to(raw, target_is_directory=True)
    assert [job.name for job in plan(raw, out)] == ["Clip.MP4"]


def test_folders_that_link_to_each_other_are_followed_once(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / f"{name}.mp4").touch()
        (tmp_path / "raw" / name / "other").symlink_to(f"../{other}", target_is_directory=True)
    names = [job.name for job in plan(tmp_path / "raw", tmp_path / "out")]
    assert names == ["a/a.mp4", "a/other/b.mp4", "b/b.mp4", "b/other/a.mp4"]


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, capsys):
    raw = tmp_path / "raw"
    for name in ("0.mp4", "closed/1.mp4", "b/closed/2.mp4"):
        write_clip(raw / name, 1)
    scandir = os.scandir

    def refuse(path):  # to root, all can be
        if os.path.basename(os.path.normpath(path)) == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    message = refusal(capsys, raw, tmp_path / "out")
    assert all(f"{raw / name} cannot be read: Permission denied" in message for name in ("closed", "b/closed"))
    assert "Make that readable" in message and not (tmp_path / "out").exists()


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    assert error.value.code == 2
    return capsys.readouterr().err


def test_other_settings_are_refused(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "clip.mp4")
    assert run(raw, out, "--fps", "3.0") == 0
    assert run(raw, out, "--fps", "3") == 0
    for change in (["--fps", "1"], ["--size", "128"], ["--crf", "30"], ["--max_seconds", "30"]):
        assert "compress_video.json" in refusal(capsys, raw, out, *change)
    (out / "compress_video.json").unlink()
    assert "no '" in refusal(capsys, raw, out)


def test_two_videos_with_one_target_are_refused(tmp_path, capsys):
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_clip(raw / "sub" / "a.avi", codec="mpeg4")
    write_clip(raw / "sub" / "a.mp4")
    message = refusal(capsys, raw, out)
    assert "sub/a.avi" in message and "sub/a.mp4" in message
    assert not out.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--size", "225"),
        ("--size", "0"),
        ("--fps", "0"),
        ("--fps", "-3"),
        ("--fps", "x"),
        ("--fps", "1/0"),
        ("--crf", "52"),
        ("--max_seconds", "0"),
        ("--max_seconds", "1/0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, capsys, options):
    write_clip(tmp_path / "raw" / "clip.mp4")
    assert refusal(capsys, tmp_path / "raw", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_impossible_folders_are_refused(tmp_path, capsys):
    raw = tmp_path / "raw"
    assert "not a folder" in refusal(capsys, raw, tmp_path / "out")
    raw.mkdir()
    assert "no videos" in refusal(capsys, raw, tmp_path / "out")
    write_clip(raw / "clip.mp4")
    assert "lies in" in refusal(capsys, raw, raw / "out")
    assert "lies in" in refusal(capsys, raw, raw)


def test_two_processes_make_the_same_files_as_one(tmp_path):
    raw = tmp_path / "raw"
    for index in range(4):
        write_clip(raw / f"{index}.mp4", 10 + index)
    (raw / "bad.mp4").touch()
    assert run(raw, tmp_path / "one") == 1
    assert run(raw, tmp_path / "two", "--num_workers", "2") == 1
    assert files_under(tmp_path / "one") == files_under(tmp_path / "two")
    for name in files_under(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_two_processes_with_nothing_left_to_do(tmp_path):
    write_clip(tmp_path / "in" / "clip.mp4", 3)
    for _ in range(2):
        assert run(tmp_path / "in", tmp_path / "out", "--num_workers", "2") == 0


def start_long_run(tmp_path) -> subprocess.Popen:
    """A run with two workers, a few seconds long, that has begun its first videos."""
    clip = write_clip(tmp_path / "raw" / "0.mp4", 60, size=(1920, 1080), preset="ultrafast", g="1")
    for index in range(1, 6):
        shutil.copy(clip, clip.with_name(f"{index}.mp4"))
    folders = ["--input_root", tmp_path / "raw", "--output_root", tmp_path / "out"]
    command = ["preprocess/compress_video.py", "--num_workers", "2", *folders]
    process = start(*command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 20
    while not list((tmp_path / "out").glob(".*.mp4.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def workers_of(process) -> list[int]:
    """The worker processes of a run."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds worker processes in /proc")


@needs_proc
def test_interrupting_stops_at_once_and_the_run_can_continue(tmp_path):
    process = start_long_run(tmp_path)
    workers = workers_of(process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C: to the parent and its workers
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 130, errors
    assert "interrupted" in printed and "Traceback" not in errors
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    assert files_under(tmp_path / "out") == {
        *(f"{index}.mp4" for index in range(6)),
        "compress_video.json",
        "failed_videos.csv",
    }


@needs_proc
def test_a_run_that_is_killed_leaves_no_process_and_is_continued_at_once(tmp_path):
    process = start_long_run(tmp_path)
    workers = workers_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=20)
    assert list((tmp_path / "out").glob(".*.partial"))
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    process.communicate(timeout=20)
    assert files_under(tmp_path / "out") == {
        *(f"{index}.mp4" for index in range(6)),
        "compress_video.json",
        "failed_videos.csv",
    }
    assert all(len(read_clip(path)[0]) == 6 for path in (tmp_path / "out").glob("*.mp4"))


@needs_proc
def test_a_worker_that_dies_is_a_failure_of_the_run(tmp_path):
    process = start_long_run(tmp_path)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    printed, errors = process.communicate(timeout=20)
    assert process.returncode == 1, errors
    assert "a worker process died" in printed and "not reached" in printed
    assert run(tmp_path / "raw", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 6
