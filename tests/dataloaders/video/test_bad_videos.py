"""Whatever lies in a folder of videos: its frames, or the reason why there are none; and decoders that misbehave."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video import decoding, preprocessing
from dataloaders.video import reader as video_reader
from dataloaders.video.decoding import BadVideoError, read_video
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from helpers.faults import LIBRARY
from helpers.launching import run_code, start
from helpers.paths import shared_data
from helpers.videos import clip_facts, damage, encode, noise, picture, read_numbers, write_video

TIME_LIMIT = 30.0
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")


@pytest.fixture(scope="module")
def reader():
    """One for all files: what a file leaves behind in it would show in the next."""
    reader = VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT))
    yield reader
    reader.close()


def reason_of(reader, path, num_frames=4):
    """Why a file is bad."""
    with pytest.raises(BadVideoError) as caught:
        reader.read(path, num_frames, FrameSampler())
    assert caught.value.path == path
    return caught.value.reason


def scene(frames, height, width):
    """Smooth pictures whose corners differ, brighter from frame to frame: (frames, height, width, 3) uint8."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    colours = np.stack([rows, columns, (1 - rows) * (1 - columns)], axis=-1) * 150
    return np.stack([colours + 90 * i / frames for i in range(frames)]).astype(np.uint8)


def decode(path):
    """All frames by PyAV, in the order of their times: (n, H, W, 3) uint8, not turned."""
    with av.open(str(path)) as container:
        frames = sorted(container.decode(video=0), key=lambda frame: frame.pts)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def difference(frames, others):
    """The largest of all pixels, in grey levels."""
    assert frames.shape == others.shape
    return np.abs(frames.astype(int) - others).max()


# What is no video


def test_what_is_no_file_is_bad_and_named(reader, tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    reasons = {
        "folder.mp4": "is a directory",
        "empty.mp4": "the file is empty",
        "gone.mp4": "no such file",
        "dangling.mp4": "no such file",
        "loop.mp4": "Too many levels of symbolic links",
        "text.mp4/clip.mp4": "Not a directory",
        "a" * 300 + ".mp4": "File name too long",
    }
    assert {name: reason_of(reader, tmp_path / name) for name in reasons} == reasons
    assert "OpenCV: no frame can be decoded" in reason_of(reader, tmp_path / "text.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this platform")
def test_a_pipe_is_refused_without_waiting_for_who_writes_to_it(reader, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    start = time.monotonic()
    assert reason_of(reader, tmp_path / "pipe.mp4") == "is not a regular file"
    assert time.monotonic() - start < TIME_LIMIT / 2


def test_a_file_that_may_not_be_read_is_bad():
    # root may read everything: its decoding process becomes somebody else, who must be able to find the file
    become = "import os; os.setresuid(65534, 65534, 65534); " if os.geteuid() == 0 else ""
    command = (sys.executable, "-c", f"from dataloaders.video.reader import serve; {become}serve()")
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT), command=command)) as reader,
    ):
        path = Path(folder, "clip.mp4")
        write_video(path, frames=3)
        Path(folder).chmod(0o755)
        path.chmod(0o644)
        assert len(reader.read(path, 4, FrameSampler())) == 3
        path.chmod(0)
        assert reason_of(reader, path) == "no permission to read it"
        Path(folder).chmod(0o700 if become else 0)
        assert reason_of(reader, path) == "Permission denied"
        Path(folder).chmod(0o700)


def test_a_name_is_a_name_whatever_it_looks_like(reader, tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.mp4", frames=5)
    frames = reader.read(clip, 5, FrameSampler())
    monkeypatch.chdir(tmp_path)  # the reader's process stays where it is
    for name in ("file:clip.mp4", "a:b.mp4", "frame%03d.mp4", "-i x?y#z é.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert np.array_equal(reader.read(name, 5, FrameSampler()), frames)
    odd = os.fsdecode(b"\xff.mp4")
    Path(odd).write_bytes(clip.read_bytes())
    assert reason_of(reader, odd) == "its name is not UTF-8; rename it"


# Videos without, or with half of, their frames


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mov"])
def test_a_container_without_frames_is_bad(reader, tmp_path, suffix):
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    assert path.stat().st_size
    assert "OpenCV: no frame can be decoded" in reason_of(reader, path)


@pytest.mark.parametrize("suffix, codec", [("mp4", "aac"), ("mkv", "aac"), ("avi", "pcm_s16le"), ("webm", "libopus")])
def test_sound_alone_is_bad(reader, tmp_path, suffix, codec):
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=48000, layout="mono")
        for _ in range(50):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.int16), "s16", "mono")
            sound.sample_rate = 48000
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    reason = reason_of(reader, path)
    assert "OpenCV: no frame can be decoded" in reason
    assert decoding.decord is None or "cannot find video stream" in reason


@pytest.mark.parametrize("name, codec", [("clip.mkv", "libx264"), ("clip.avi", "mpeg4"), ("clip.webm", "libvpx")])
@pytest.mark.parametrize("part", [0.6, 0.9])
def test_a_truncated_video_says_how_far_it_goes(reader, tmp_path, name, codec, part):
    path = encode(tmp_path / name, noise(40, 64, 128), codec)
    assert len(reader.read(path, 40, FrameSampler())) == 40
    damage(path, part, keep_length=False)
    reason = reason_of(reader, path, num_frames=1)
    breaks_off = reason.split("breaks off after ")[-1].split(" frames")[0]
    left, total = map(int, breaks_off.split(" of "))
    assert abs(left / total - part) < 0.15  # in frames, which are not of one size
    assert abs(total - 40) <= 1


def test_a_truncated_mp4_has_no_index_and_is_bad(reader, tmp_path):
    path = write_video(tmp_path / "clip.mp4")
    damage(path, 0.6, keep_length=False)
    assert "OpenCV: no frame can be decoded" in reason_of(reader, path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_pictures_that_the_decoder_patched_up_are_bad_unless_that_is_asked_for(reader, tmp_path, suffix, codec):
    path = encode(tmp_path / f"clip.{suffix}", noise(20, 64, 128), codec)
    whole, frames = path.read_bytes(), reader.read(path, 20, FrameSampler())
    patched = 0
    with contextlib.closing(
        VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT, decoder_errors="ignore"))
    ) as lenient:
        for seed in range(6):
            draw = np.random.default_rng(seed)
            start = int(len(whole) * draw.uniform(0.3, 0.7))
            path.write_bytes(whole[:start] + draw.bytes(8) + whole[start + 8 :])
            try:
                accepted = lenient.read(path, 20, FrameSampler())
            except BadVideoError:
                continue
            if not np.array_equal(accepted, frames):
                try:
                    reader.read(path, 20, FrameSampler())
                except BadVideoError as error:
                    assert "breaks off" not in error.reason
                    patched += 1
    # bits that decode to something else without an error cannot be told from a picture
    assert patched
    path.write_bytes(whole)
    assert np.array_equal(reader.read(path, 20, FrameSampler()), frames)


@pytest.mark.slow
def test_a_frame_too_large_for_the_memory_is_bad(tmp_path):
    measure = "int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024"
    limits = [
        f"import re, dataloaders.video.reader as d; d.MEMORY_LIMIT = {measure} + {mb}*2**20; d.serve()"
        for mb in (190, 250, 320)
    ]
    path = encode(tmp_path / "large.mkv", np.zeros((3, 4000, 4000, 3), np.uint8), "ffv1", "bgr0")
    small = write_video(tmp_path / "small.mp4")
    for limit in limits:
        with contextlib.closing(
            VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT), command=(sys.executable, "-c", limit))
        ) as reader:
            assert reason_of(reader, path)  # and no error of another kind, which would end a training
            assert len(reader.read(small, 4, FrameSampler())) == 4


# Odd videos that are whole


@pytest.mark.parametrize(
    "name, codec", [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx")]
)
def test_a_video_of_one_frame_has_that_frame(reader, tmp_path, name, codec):
    path = encode(tmp_path / name, scene(1, 64, 96), codec)
    frames = reader.read(path, 12, FrameSampler())
    assert len(frames) == 1
    assert difference(frames, decode(path)) <= 3


TIMES = {
    "irregular": np.cumsum(np.random.default_rng(1).integers(10, 200, 40)).tolist(),
    "a long last gap": [*range(0, 39 * 40, 40), 60_000],
    "a pause": [*range(0, 800, 40), *range(10_000, 10_800, 40)],
}


@pytest.mark.parametrize(
    "suffix, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("mov", "libx264"), ("webm", "libvpx")]
)
@pytest.mark.parametrize("times", TIMES)
def test_frames_are_counted_not_timed(reader, tmp_path, suffix, codec, times):
    steady = decode(write_video(tmp_path / "steady.mp4"))
    path = encode(tmp_path / f"clip.{suffix}", steady, codec, milliseconds=TIMES[times])
    assert read_numbers(reader.read(path, 40, FrameSampler())) == list(range(40))
    assert read_numbers(reader.read(path, 4, FrameSampler())) == [5, 15, 25, 35]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts"])
def test_packets_out_of_order_give_frames_in_order(reader, tmp_path, suffix):
    options = {"x264-params": "bframes=8:b-adapt=0:b-pyramid=normal:scenecut=0"}
    path = write_video(tmp_path / f"clip.{suffix}", gop=40, options=options)
    with av.open(str(path)) as container:
        times = [packet.pts for packet in container.demux(video=0) if packet.pts is not None]
    assert suffix == "avi" or times != sorted(times)  # AVI has no times
    assert read_numbers(reader.read(path, 40, FrameSampler())) == list(range(40))


PIXELS = {  # name of the file -> codec, pixel format, and how far (grey levels) PyAV's conversion may differ
    "h264_10.mp4": ("libx264", "yuv420p10le", 8),
    "h264_422_10.mp4": ("libx264", "yuv422p10le", 8),
    "h265_10.mp4": ("libx265", "yuv420p10le", 8),
    "prores.mov": ("prores_ks", "yuv422p10le", 8),
    "grey.mp4": ("libx264", "gray", 1),
    "grey.mkv": ("ffv1", "gray", 0),
    "grey_16.mkv": ("ffv1", "gray16le", 1),
    "alpha.mov": ("png", "rgba", 0),
    "444.mp4": ("libx264", "yuv444p", 2),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_of_any_form_become_8_bit_colours(reader, tmp_path, name):
    codec, pix_fmt, tolerance = PIXELS[name]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    pictures = scene(6, 64, 96)
    path = encode(tmp_path / name, pictures, codec, pix_fmt, options=options)
    frames, others = reader.read(path, 6, FrameSampler()), decode(path)
    assert difference(frames, others) <= tolerance
    assert np.abs(frames.astype(int) - others).mean() < 1.5
    if "gray" in pix_fmt:
        pictures = np.repeat(pictures @ [[0.299], [0.587], [0.114]], 3, axis=-1)  # BT.601's luma, thrice
    assert np.abs(frames - pictures.astype(float)).mean() < 6  # a grey stream does not say its range


SIZES = [(1, 1), (3, 1000), (1000, 3), (1, 1000), (5, 7)]
LOSSLESS = {"clip.mkv": ("ffv1", "bgr0"), "clip.mov": ("png", "rgb24"), "clip.mp4": ("libx264rgb", "rgb24")}


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("name", LOSSLESS)
def test_odd_sizes_keep_every_pixel(reader, tmp_path, name, height, width):
    codec, pix_fmt = LOSSLESS[name]
    pictures = noise(5, height, width)
    path = encode(tmp_path / name, pictures, codec, pix_fmt, options={"qp": "0"} if codec == "libx264rgb" else None)
    assert difference(reader.read(path, 5, FrameSampler()), pictures) == 0


def turn(path, degrees):
    """Let the header of an MP4 ask for a clockwise turn, as a telephone does that is held upright."""
    content = path.read_bytes()
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 1]
    units = [2**16, 2**16, 2**30] * 3
    start = content.index(b"tkhd") + 44
    packed = b"".join((value * unit).to_bytes(4, "big", signed=True) for value, unit in zip(matrix, units, strict=True))
    path.write_bytes(content[:start] + packed + content[start + 36 :])
    return path


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_rotation_tag_is_obeyed(reader, tmp_path, degrees):
    path = turn(encode(tmp_path / "clip.mp4", scene(6, 64, 96)), degrees)
    upright = np.rot90(decode(path), -degrees // 90, axes=(1, 2))  # counter-clockwise; PyAV does not turn
    assert difference(reader.read(path, 6, FrameSampler()), upright) <= 3


@pytest.mark.parametrize("name", ["video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov", "unordered.mov"])
def test_real_clips_with_tags_and_unordered_packets(reader, name):
    path = shared_data("videos") / name
    turns = int(name[6:-4]) // 90 if name.startswith("video") else 0
    upright = [np.rot90(decode(path), k, axes=(1, 2)) for k in range(4)]
    frames = reader.read(path, 12, FrameSampler())
    errors = [np.abs(frames.astype(int) - u).mean() if u.shape == frames.shape else np.inf for u in upright]
    assert errors[-turns % 4] == min(errors) < 2


@pytest.mark.parametrize("name", clip_facts())
def test_real_clips_are_the_same_from_another_process(reader, name):
    path = shared_data("videos") / name
    frames, count = read_video(path, 12)
    assert np.array_equal(reader.read(path, 12, FrameSampler()), frames[:count])


def test_the_damaged_real_clip_is_bad(reader):
    assert "breaks off after 28 of 50 frames" in reason_of(reader, shared_data("videos") / "corrupted.mp4")


# Extreme shapes up to the encoder


@pytest.mark.parametrize("height, width", SIZES)
def test_odd_sizes_arrive_as_the_encoder_takes_them(tmp_path, height, width):
    path = encode(tmp_path / "clip.mkv", noise(5, height, width), "ffv1", "bgr0")
    dataset = EvaluationDataset([Sample("a", "a", path, ("text",))], VideoSettings(12, 224, 0))
    with contextlib.closing(dataset.reader):
        item = dataset.read(0)
    assert item.frames.shape == (12, 3, 224, 224)
    assert item.num_frames == 5
    assert item.frames[:5].flatten(1).any(dim=1).all()
    assert not item.frames[5:].any()


def test_extreme_shapes_cost_little():
    script = (
        "import resource, time; import numpy as np; from dataloaders.video.preprocessing import resize_and_crop\n"
        "resize_and_crop(np.zeros((1, 40, 50, 3), np.uint8), 224)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before, start = peak(), time.process_time()\n"
        "for shape in [(3, 1000), (1000, 3), (1, 4000), (4000, 1)]:\n"
        "    resize_and_crop(np.zeros((12, *shape, 3), np.uint8), 224)\n"
        "print(time.process_time() - start, (peak() - before) / 1024)"
    )
    seconds, megabytes = map(float, run_code(script).split())
    assert seconds < 2
    assert megabytes < 100


@pytest.mark.parametrize(
    "height, width", [(3, 1000), (1000, 3), (1, 100), (7, 331), (999, 13), (300, 5000), (5000, 300)]
)
@pytest.mark.parametrize("place", [0, 0.3, 0.5, 1])
def test_a_part_resized_is_a_part_of_what_is_resized(monkeypatch, height, width, place):
    frames = np.concatenate([picture(height, width), picture(height, width, seed=2)])
    part = resize_and_crop(frames, 224, place)
    monkeypatch.setattr(preprocessing, "EXTREME_ASPECT", np.inf)
    whole = resize_and_crop(frames, 224, place)
    assert part.shape == whole.shape and part.dtype == whole.dtype
    assert (part.int() - whole.int()).abs().max() <= 2


@pytest.mark.parametrize("height, width", [(3, 1000), (1000, 3), (1, 100), (7, 331), (999, 13)])
def test_extreme_shapes_are_preprocessed_as_by_clip(height, width):
    from open_clip import image_transform

    frames = picture(height, width)
    clip_transform = image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (clip_transform(Image.fromarray(frames[0])) * 255).round().int()  # (3, 224, 224)
    assert (resize_and_crop(frames, 224)[0].int() - expected).abs().max() <= 1


def test_shapes_that_videos_have_are_not_resized_in_part(monkeypatch):
    monkeypatch.setattr(preprocessing, "_resize_part", lambda *_: pytest.fail("another path, whose bits differ"))
    for height, width in [(240, 426), (1080, 1920), (2160, 4096), (100, 1600), (224, 9000), (9000, 224)]:
        assert resize_and_crop(np.zeros((1, height, width, 3), np.uint8), 224).shape == (1, 3, 224, 224)


# Decoders that misbehave


@pytest.fixture
def fake_decord(tmp_path, monkeypatch):
    """Puts a decord of this text before the real one, in processes that are started from now on."""

    def install(text=LIBRARY):
        (tmp_path / "fakes" / "decord").mkdir(parents=True)
        (tmp_path / "fakes" / "decord" / "__init__.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))

    return install


def decoders(parent):
    """The decoding processes that are children of a process and have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and is_running(int(entry.name)):
            with contextlib.suppress(OSError):
                status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(status[1]) == parent and b"dataloaders.video.reader" in (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
    return found


def is_running(process):
    """Not one that has ended and is only still listed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until_gone(processes, seconds):
    end = time.monotonic() + seconds
    while (left := [process for process in processes if is_running(process)]) and time.monotonic() < end:
        time.sleep(0.05)
    return not left


@needs_proc
def test_a_decoder_that_hangs_is_ended_in_time(fake_decord, tmp_path):
    fake_decord()
    before = decoders(os.getpid())
    good, bad = write_video(tmp_path / "good.mp4"), write_video(tmp_path / "hang.mp4")
    with contextlib.closing(VideoReader(DecodingSettings(video_time_limit=4.0))) as reader:
        frames = reader.read(good, 5, FrameSampler())
        (child,) = decoders(os.getpid()) - before
        start = time.monotonic()
        assert reason_of(reader, bad) == "not decoded within 4 seconds"
        assert 4 <= time.monotonic() - start < 15
        assert not is_running(child)
        assert np.array_equal(reader.read(good, 5, FrameSampler()), frames)
    assert decoders(os.getpid()) == before


def test_a_decoder_that_crashes_is_tried_twice(fake_decord, tmp_path):
    fake_decord()
    paths = [write_video(tmp_path / name) for name in ("crash.mp4", "crash_once.mp4", "good.mp4")]
    with contextlib.closing(VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT))) as reader:
        assert reason_of(reader, paths[0]) == "the decoder crashed: killed by SIGSEGV"
        assert Path(f"{paths[0]}.count").read_text() == "xx"
        assert read_numbers(reader.read(paths[1], 40, FrameSampler())) == list(range(40))
        assert Path(f"{paths[1]}.count").read_text() == "xx"
        assert read_numbers(reader.read(paths[2], 40, FrameSampler())) == list(range(40))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("import sys; sys.exit(3)", "exit code 3"),
        ("this is no Python", "exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "did not start: killed by SIGKILL"),
        ("import time; time.sleep(1000)", "was not ready within 2 seconds"),
    ],
)
def test_a_process_that_does_not_start_is_no_bad_video(fake_decord, tmp_path, monkeypatch, text, reason):
    fake_decord(text)
    if "sleep" in text:
        monkeypatch.setattr(video_reader, "START_LIMIT", 2.0)
    before = decoders(os.getpid())
    with pytest.raises(RuntimeError, match=reason) as caught:
        VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT)).read(
            write_video(tmp_path / "clip.mp4"), 4, FrameSampler()
        )
    assert not isinstance(caught.value, BadVideoError)
    assert decoders(os.getpid()) == before


@needs_proc
def test_a_bad_video_costs_no_new_process(reader, tmp_path):
    good = write_video(tmp_path / "good.mp4")
    bad = encode(tmp_path / "bad.mkv", noise(20, 64, 128))
    damage(bad, 0.6, keep_length=False)
    frames = reader.read(good, 5, FrameSampler())
    before = decoders(os.getpid())
    for _ in range(20):  # nor does what the decoder said of it stick to the next
        reason_of(reader, bad)
        assert np.array_equal(reader.read(good, 5, FrameSampler()), frames)
    assert decoders(os.getpid()) == before


@pytest.mark.parametrize("answer", ["pickle", "text", "list"])
def test_what_a_process_answers_is_data_and_not_run(tmp_path, answer):
    trace = tmp_path / "trace"
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, pickle, sys\n"
        "class Evil:\n"
        f"    def __reduce__(self):\n        return os.mkdir, ({str(trace)!r},)\n"
        "answers = {'pickle': pickle.dumps(Evil()), 'text': b'__import__(\"os\").mkdir(\"trace\")', 'list': b'[1]'}\n"
        "out = sys.stdout.buffer\n"
        "out.write(b'{\"ready\": true}\\n')\n"
        "out.flush()\n"
        "sys.stdin.readline()\n"
        f"out.write(answers[{answer!r}] + b'\\n')\n"
        "out.flush()\n"
        "sys.stdin.readline()\n"
    )
    reader = VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT), command=(sys.executable, str(script)))
    with contextlib.closing(reader), pytest.raises((ValueError, TypeError, AttributeError, KeyError)):
        reader.read(tmp_path / "clip.mp4", 4, FrameSampler())
    assert not trace.exists()
    source = Path(video_reader.__file__).read_text() + Path(decoding.__file__).read_text()
    assert "import pickle" not in source and "eval(" not in source


class _Clips(torch.utils.data.Dataset):
    def __init__(self, path, reader):
        self.path, self.reader = path, reader

    def __len__(self):
        return 8

    def __getitem__(self, index):
        frames = self.reader.read(self.path, 5, FrameSampler())
        return os.getpid(), decoders(os.getpid()), read_numbers(frames)


@needs_proc
@pytest.mark.parametrize("context", ["fork", "forkserver"])
def test_each_worker_has_a_decoding_process_of_its_own(tmp_path, context):
    path = write_video(tmp_path / "clip.mp4")
    with contextlib.closing(VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT))) as reader:
        before = decoders(os.getpid())
        numbers = read_numbers(reader.read(path, 5, FrameSampler()))
        own = decoders(os.getpid()) - before
        assert len(own) == 1
        loader = torch.utils.data.DataLoader(
            _Clips(path, reader), batch_size=None, num_workers=2, multiprocessing_context=context
        )
        items = list(loader)
        children = {worker: found for worker, found, _ in items}
        assert len(children) == 2 and os.getpid() not in children
        assert all(len(found) == 1 for _, found, _ in items)  # one for all of a worker's videos
        assert not set.intersection(own, *children.values())
        assert len(set.union(*children.values())) == 2
        assert all(seen == numbers for _, _, seen in items)
        assert wait_until_gone(set.union(*children.values()), seconds=20)
        assert decoders(os.getpid()) - before == own  # not ended by the workers' ends
        assert read_numbers(reader.read(path, 5, FrameSampler())) == numbers
    assert decoders(os.getpid()) == before


@needs_proc
@pytest.mark.slow
def test_a_process_that_hangs_ends_although_its_parent_was_killed(fake_decord, tmp_path):
    fake_decord()
    path = write_video(tmp_path / "hang.mp4")
    script = (
        "from dataloaders.video.reader import DecodingSettings, VideoReader"
        "; from dataloaders.video.sampling import FrameSampler\n"
        f"VideoReader(DecodingSettings(video_time_limit=4.0)).read({str(path)!r}, 5, FrameSampler())"
    )
    parent = start("-c", script, stdout=None, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (children := decoders(parent.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert len(children) == 1
    while not Path(f"{path}.hangs").exists() and time.monotonic() < end:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    time.sleep(1)
    assert any(map(is_running, children))  # its parent's end is not what ends it
    assert wait_until_gone(children, seconds=30)
