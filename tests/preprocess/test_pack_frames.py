"""Packing frames: the same frames as the compressed video, resuming, damage, and training that reads them."""

import csv
import fcntl
import importlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import main_task_recognition
import main_task_retrieval
from common.errors import UserError
from dataloaders.items import TrainingDataset, VideoSettings
from dataloaders.samples import Sample, VideoLocation
from dataloaders.video.decoding import BadVideoError, read_video
from dataloaders.video.pack_index import PackedVideo, PackIndex
from dataloaders.video.packed import PackReader
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from dataloaders.video_files import VideoFiles
from helpers.flags import train_ids, without
from helpers.launching import start
from helpers.paths import shared_data
from helpers.runs import rows_of
from helpers.tiny import TINY_TRAINING
from helpers.videos import indices_of, shown_at, write_clip
from preprocess import check_videos, pack_frames
from preprocess.compress_video import CompressSettings, compress
from preprocess.frames import DamagedVideo

SMALL_SHARD = 15  # in place of the bytes of a MiB: with --shard_mb 1024, small clips fill several shards
MANY = 10_000  # more frames than any clip has
RETRIEVAL, RECOGNITION = main_task_retrieval.main, main_task_recognition.main


def run(source, output, *options) -> int:
    """The packing program, with one process unless the options say otherwise."""
    flags = ["--input_root", source, "--output_root", output, "--num_workers", 1, *options]
    return pack_frames.main([str(flag) for flag in flags])


def refused(capsys, *arguments) -> str:
    """What a run prints that cannot start."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run(*arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


def verify(output) -> int:
    return pack_frames.main(["--verify", "--output_root", str(output)])


def all_frames(pack, video) -> np.ndarray:
    """Everything that a pack holds of a video: (n, H, W, 3)."""
    index = PackIndex.open(pack)
    return PackReader(index).read(index.path / video, MANY, FrameSampler())


def decode(path) -> np.ndarray:
    """A video as training decodes it: (n, H, W, 3)."""
    frames, count = read_video(path, 1000)
    assert count < 1000
    return frames[:count]


def files_in(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def failures_in(output) -> dict[str, str]:
    with open(output / "failed_videos.csv", newline="", encoding="utf-8") as file:
        return {row["video"]: row["reason"] for row in csv.DictReader(file)}


def write_noise(path, num_frames=12, rate=3, size=(40, 24), seed=0, codec="libx264", pix_fmt="yuv420p"):
    """A clip of blurred noise that the encoder keeps detail of."""
    generator = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate, options={"crf": "5"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        for _ in range(num_frames):
            small = generator.integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
            picture = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Six small clips, some in folders, with 5 to 10 frames at 3 a second."""
    root = tmp_path_factory.mktemp("videos")
    for number, name in enumerate(["a.mp4", "b.mkv", "class x/c.mp4", "class x/d.avi", "e é.mp4", "f.mp4"]):
        write_noise(root / name, 5 + number, seed=number)
    return root


@pytest.fixture(scope="module")
def packs(videos, tmp_path_factory):
    """The clips packed in either format, several shards each."""
    root = tmp_path_factory.mktemp("packs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_frames, "MEGABYTE", SMALL_SHARD)
        for name in ("jpeg", "raw"):
            assert run(videos, root / name, "--format", name) == 0
            assert len(list((root / name).glob("*.tar"))) >= 2
    return root


@pytest.fixture
def jpeg(packs, tmp_path):
    """A pack that a test may damage."""
    return Path(shutil.copytree(packs / "jpeg", tmp_path / "pack"))


# --- Which frames, and what they look like ---------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(30), Fraction(25), Fraction(30000, 1001), Fraction(7, 2), Fraction(2)])
def test_frame_k_is_the_one_shown_at_k_over_fps(tmp_path, rate):
    write_clip(tmp_path / "in" / "clip.mp4", 60, rate)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    frames = all_frames(tmp_path / "out", "clip.mp4")
    # plain grey: limited-range luma is a linear function of the pixels
    luma = frames.astype(float).mean(-1) * 219 / 255 + 16
    assert indices_of(luma) == shown_at([index / rate for index in range(60)], 3, 60 / rate)


@pytest.mark.parametrize("size", [(64, 48), (42, 26), (300, 230), (230, 414), (33, 35)])
def test_a_raw_pack_of_an_original_is_its_lossless_compression(tmp_path, size):
    """What is packed is what compress_video.py hands to the encoder, as training would decode it."""
    source = write_noise(tmp_path / "in" / "clip.mkv", 20, 25, size, codec="ffv1", pix_fmt="yuv444p")
    compress(source, tmp_path / "lossless.mp4", CompressSettings(crf=0))
    assert run(tmp_path / "in", tmp_path / "out", "--format", "raw") == 0
    assert np.array_equal(all_frames(tmp_path / "out", "clip.mkv"), decode(tmp_path / "lossless.mp4"))


@pytest.mark.parametrize(
    "name", ["test.mp4", "test.avi", "flipping_a_pancake.mkv", "unordered.mov", "video_90.mov", "video_180.mov"]
)
def test_real_clips_are_packed_as_compressing_them_gives_them(tmp_path, name):
    clip = shared_data("videos") / name
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).symlink_to(clip)
    compress(clip, tmp_path / "lossless" / "clip.mp4", CompressSettings(crf=0))
    compress(clip, tmp_path / "compressed" / "clip.mp4", CompressSettings())
    compressed = decode(tmp_path / "compressed" / "clip.mp4")
    for kind in ("raw", "jpeg"):
        assert run(tmp_path / "in", tmp_path / kind, "--format", kind) == 0
        assert run(tmp_path / "compressed", tmp_path / f"{kind}_again", "--format", kind) == 0
    assert np.array_equal(all_frames(tmp_path / "raw", name), decode(tmp_path / "lossless" / "clip.mp4"))
    assert np.array_equal(all_frames(tmp_path / "raw_again", "clip.mp4"), compressed)
    if name.startswith("video_90"):
        assert compressed.shape[1] > compressed.shape[2]  # upright
    for pack, file, exact in (("jpeg", name, "raw"), ("jpeg_again", "clip.mp4", "raw_again")):
        frames, wanted = all_frames(tmp_path / pack, file), all_frames(tmp_path / exact, file)
        error = ((frames.astype(float) - wanted) ** 2).mean((1, 2, 3))
        assert frames.shape == wanted.shape and (error < 255**2 / 10**3.4).all()  # 34 dB


def test_sampled_frames_are_those_of_the_decoded_video(videos, packs):
    reader, packed = VideoReader(DecodingSettings(video_time_limit=60)), PackReader(PackIndex.open(packs / "raw"))
    samplers = [FrameSampler(), FrameSampler(clip=1, num_clips=3), *(FrameSampler(seed=seed) for seed in range(5))]
    for name in packed.index.videos:
        for sampler in samplers:
            for num_frames in (1, 4, 12):
                frames = packed.read(packs / "raw" / name, num_frames, sampler)
                assert np.array_equal(frames, reader.read(videos / name, num_frames, sampler))
    reader.close()


def test_any_tar_program_unpacks_a_shard(packs, tmp_path):
    unpacked = {}
    for kind in ("jpeg", "raw"):
        for shard in sorted((packs / kind).glob("*.tar")):
            with tarfile.open(shard) as archive:
                archive.extractall(tmp_path / kind, filter="data")
        unpacked[kind] = {path.relative_to(tmp_path / kind).as_posix() for path in (tmp_path / kind).rglob("*.*")}
    assert {"a.npy", "class x/c.npy", "e é.npy"} <= unpacked["raw"] and len(unpacked["raw"]) == 6
    for name, video in PackIndex.open(packs / "raw").videos.items():
        target = Path(name).with_suffix("")
        frames = np.load(tmp_path / "raw" / target.with_suffix(".npy"), mmap_mode="r")
        assert np.array_equal(frames, all_frames(packs / "raw", name))
        pictures = sorted((tmp_path / "jpeg" / target).iterdir())
        assert [path.name for path in pictures] == [f"{k:06d}.jpg" for k in range(video.num_frames)]
        read = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in pictures]
        assert np.array_equal(np.stack(read), all_frames(packs / "jpeg", name))


def test_names_that_are_odd(tmp_path):
    for name in ("x" * 150 + ".mp4", "a:b.mp4", "line\nbreak.mp4", os.fsdecode(b"latin\xe9.mp4")):
        write_noise(tmp_path / "in" / "clip.mp4", 2).rename(tmp_path / "in" / name)
    for kind in ("jpeg", "raw"):
        assert run(tmp_path / "in", tmp_path / kind, "--format", kind) == 0
        packed, given = VideoFiles(PackIndex.open(tmp_path / kind)), VideoFiles(tmp_path / "in")
        names = [path.name for path in (tmp_path / "in").iterdir()]
        for name in names:
            assert packed.find(Path(name).stem) == [tmp_path / kind / name]
            assert given.find(Path(name).stem) == [tmp_path / "in" / name]
        assert len(names) == 4 and all(len(all_frames(tmp_path / kind, name)) == 2 for name in names)
        assert verify(tmp_path / kind) == 0


# --- One run after another -------------------------------------------------------------------------------


def test_the_archives_do_not_depend_on_the_number_of_processes(videos, packs, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_frames, "MEGABYTE", SMALL_SHARD)
    assert run(videos, tmp_path / "pack", "--num_workers", 2) == 0
    assert files_in(tmp_path / "pack") == files_in(packs / "jpeg")


def test_nothing_is_done_twice(videos, packs, jpeg, monkeypatch, capsys):
    monkeypatch.setattr(pack_frames, "attempt", None)
    for workers in (1, 2):
        assert run(videos, jpeg, "--num_workers", workers) == 0
    assert "0 packed, 6 already there, 0 failed" in capsys.readouterr().out
    assert files_in(jpeg) == files_in(packs / "jpeg")


def test_a_run_that_ended_anywhere_is_continued_to_the_same_bytes(videos, packs, jpeg, monkeypatch):
    """An index that ends anywhere, shards with anything behind what it lists: what `kill -9` can leave."""
    monkeypatch.setattr(pack_frames, "MEGABYTE", SMALL_SHARD)
    whole = files_in(packs / "jpeg")
    index = whole["index.jsonl"]
    ends = [place + 1 for place, byte in enumerate(index) if byte == ord("\n")]
    for cut in {0, 1, *ends, *(end - 1 for end in ends), *(end + 40 for end in ends[:-1])}:
        listed = [json.loads(line) for line in index[:cut].split(b"\n")[:-1]]
        for shard in jpeg.glob("*.tar"):
            shard.unlink()
        for number, entry in enumerate(listed):
            content = whole[entry["shard"]]
            if entry["shard"] == listed[-1]["shard"]:  # the others are ended before the next one begins
                end = entry["offsets"][-1] + entry["sizes"][-1] + 511 & ~511
                content = content[:end] + b"half a video" * (number * 100)
            (jpeg / entry["shard"]).write_bytes(content)
        (jpeg / "frames-00042.tar").write_bytes(b"begun")
        (jpeg / "index.jsonl").write_bytes(index[:cut])
        assert run(videos, jpeg) == 0
        assert files_in(jpeg) == whole


def start_long_run(videos, output) -> subprocess.Popen:
    """A run of two processes that has packed some of its videos, but not all."""
    command = ["preprocess/pack_frames.py", "--num_workers", "2", "--input_root", videos, "--output_root", output]
    process = start(*command, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 30
    while lines_in(output) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def lines_in(output) -> int:
    return (output / "index.jsonl").read_bytes().count(b"\n") if (output / "index.jsonl").exists() else 0


def workers_of(process) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.fixture(scope="module")
def long_videos(tmp_path_factory):
    """Ten clips that take a fraction of a second each."""
    root = tmp_path_factory.mktemp("long")
    clip = write_clip(root / "0.mp4", 40, size=(1280, 720), preset="ultrafast", g="1")
    for number in range(1, 10):
        shutil.copy(clip, root / f"{number}.mp4")
    return root


@pytest.fixture(scope="module")
def long_pack(long_videos, tmp_path_factory):
    output = tmp_path_factory.mktemp("long_pack")
    assert run(long_videos, output) == 0
    return output


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds worker processes in /proc")


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_leaves_no_process_and_is_continued(long_videos, long_pack, tmp_path, number):
    process = start_long_run(long_videos, tmp_path / "pack")
    workers = workers_of(process)
    os.kill(process.pid, number)
    printed, errors = process.communicate(timeout=20)
    if number == signal.SIGINT:
        assert process.returncode == 130 and "the same command continues" in printed and "Traceback" not in errors
        for shard in (tmp_path / "pack").glob("*.tar"):
            with tarfile.open(shard) as archive:  # ended properly
                assert len(archive.getmembers()) >= 2
    assert 2 <= lines_in(tmp_path / "pack") < 10
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert run(long_videos, tmp_path / "pack") == 0
    assert files_in(tmp_path / "pack") == files_in(long_pack)


@needs_proc
def test_a_worker_that_dies_once_costs_nothing(long_videos, long_pack, tmp_path):
    process = start_long_run(long_videos, tmp_path / "pack")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert files_in(tmp_path / "pack") == files_in(long_pack)


DEADLY_VIDEOS = """
import os, signal
from preprocess.pack_frames import encode_video

def attempt(job, settings):
    if job.name in ("b.mkv", "f.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_video(job.source, settings)
"""


def test_a_video_that_kills_its_worker_is_a_failure_and_the_others_are_packed(videos, tmp_path, monkeypatch):
    (tmp_path / "deadly_videos.py").write_text(DEADLY_VIDEOS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pack_frames, "attempt", importlib.import_module("deadly_videos").attempt)
    assert run(videos, tmp_path / "pack", "--num_workers", 2) == 1
    assert set(failures_in(tmp_path / "pack")) == {"b.mkv", "f.mp4"}
    assert all("a worker process died" in reason for reason in failures_in(tmp_path / "pack").values())
    assert set(PackIndex.open(tmp_path / "pack").videos) == {"a.mp4", "class x/c.mp4", "class x/d.avi", "e é.mp4"}


def test_one_run_at_a_time(videos, jpeg, capsys):
    with (jpeg / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run is packing" in refused(capsys, videos, jpeg)
    assert run(videos, jpeg) == 0


@pytest.mark.parametrize("call", [4, 5, 9, 11, 12, 13, 14])  # of a shard, the index, a folder; at a shard's end
def test_a_full_disk_is_an_error_that_leaves_a_pack_to_continue(videos, packs, tmp_path, monkeypatch, capsys, call):
    monkeypatch.setattr(pack_frames, "MEGABYTE", SMALL_SHARD)
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = refused(capsys, videos, tmp_path / "pack")
    assert "No space left on device" in message and ".tar" in message and "Make room" in message
    assert run(videos, tmp_path / "pack") == 0
    assert files_in(tmp_path / "pack") == files_in(packs / "jpeg")


# --- Refusals and failures --------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [("--fps", 2), ("--size", 100), ("--format", "raw"), ("--quality", 80)])
def test_other_settings_are_refused(videos, jpeg, capsys, option):
    message = refused(capsys, videos, jpeg, *option)
    assert "pack_frames.json" in message and "another --output_root" in message


def test_quality_is_no_setting_of_raw_frames(videos, packs, tmp_path):
    pack = Path(shutil.copytree(packs / "raw", tmp_path / "pack"))
    assert run(videos, pack, "--format", "raw", "--quality", 50) == 0


def test_a_changed_source_is_refused_and_a_vanished_one_is_kept(videos, jpeg, tmp_path, capsys):
    source = Path(shutil.copytree(videos, tmp_path / "videos"))
    (source / "f.mp4").unlink()
    assert run(source, jpeg) == 0
    os.utime(source / "a.mp4", ns=(0, 0))
    message = refused(capsys, source, jpeg)
    assert "a.mp4 has changed" in message and "remove its line" in message
    shutil.copystat(videos / "a.mp4", source / "a.mp4")
    (source / "a.mp4").rename(source / "a.webm")
    assert "a.mp4 is already" in refused(capsys, source, jpeg)


def test_overwrite_packs_anew_what_would_be_refused_and_nothing_else(videos, packs, jpeg, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_frames, "MEGABYTE", SMALL_SHARD)
    (jpeg / "notes.txt").write_text("not of the pack")
    assert run(videos, jpeg, "--format", "raw", "--overwrite") == 0  # other settings
    assert files_in(jpeg) == files_in(packs / "raw") | {"notes.txt": b"not of the pack"}
    source = Path(shutil.copytree(videos, tmp_path / "videos"))
    shutil.copy(source / "b.mkv", source / "f.mkv")
    (source / "f.mp4").unlink()
    assert run(source, jpeg, "--format", "raw", "--overwrite") == 0  # other files
    assert set(PackIndex.open(jpeg).videos) == {"a.mp4", "b.mkv", "class x/c.mp4", "class x/d.avi", "e é.mp4", "f.mkv"}
    assert verify(jpeg) == 0
    monkeypatch.setattr(pack_frames, "attempt", None)
    before = files_in(jpeg)
    assert run(source, jpeg, "--format", "raw", "--overwrite") == 0  # nothing is done twice
    assert files_in(jpeg) == before


def test_an_overwriting_run_that_ended_while_it_removed_the_pack_is_continued(videos, jpeg, tmp_path):
    source = Path(shutil.copytree(videos, tmp_path / "videos"))
    os.utime(source / "a.mp4", ns=(0, 0))
    (jpeg / "frames-00000.tar").unlink()
    assert run(source, jpeg, "--overwrite") == 0 and verify(jpeg) == 0


def test_overwrite_leaves_a_pack_that_is_damaged_or_cannot_be_read(videos, jpeg, monkeypatch, capsys):
    whole = files_in(jpeg)
    shard, index, settings = jpeg / "frames-00000.tar", jpeg / "index.jsonl", jpeg / "pack_frames.json"
    cases = {
        "line 2 of .*index.jsonl is damaged": lambda: index.write_bytes(whole[index.name].replace(b"b.mkv", b"a.mp4")),
        "frames-00000.tar has 600 bytes": lambda: os.truncate(shard, 600),
        "frames-00000.tar, a shard of this pack, cannot be read": shard.unlink,
        "archives without their index.jsonl": index.unlink,
        "does not hold the settings of a pack": lambda: settings.write_text("{"),
        "but no pack_frames.json says how": settings.unlink,
    }
    for message, spoil in cases.items():
        spoil()
        before = files_in(jpeg)
        assert re.search(message, refused(capsys, videos, jpeg, "--overwrite"))
        assert files_in(jpeg) == before
        for name, content in whole.items():
            (jpeg / name).write_bytes(content)
    assert run(videos, jpeg, "--overwrite") == 0 and files_in(jpeg) == whole


def test_impossible_arguments_are_refused(videos, tmp_path, capsys):
    output = tmp_path / "pack"
    for option in (
        ("--fps", 0),
        ("--fps", "1/0"),
        ("--fps", "x"),
        ("--size", 3),
        ("--quality", 0),
        ("--num_workers", 0),
        ("--shard_mb", 0),
    ):
        assert option[0].strip("-") in refused(capsys, videos, output, *option)
    assert "not a folder" in refused(capsys, tmp_path / "gone", output)
    assert not output.exists()
    (tmp_path / "empty").mkdir()
    assert "no videos" in refused(capsys, tmp_path / "empty", output)
    shutil.copytree(videos, tmp_path / "double")
    shutil.copy(videos / "a.mp4", tmp_path / "double" / "a.avi")
    assert "would both become 'a'" in refused(capsys, tmp_path / "double", output)
    with pytest.raises(SystemExit):
        pack_frames.main(["--output_root", str(output)])
    assert "--input_root" in capsys.readouterr().err
    output.mkdir()
    (output / "frames-00000.tar").touch()
    assert "frames-00000.tar, but no" in refused(capsys, videos, output)


def test_archives_without_their_index_are_not_written_over(videos, jpeg, capsys):
    (jpeg / "index.jsonl").unlink()
    before = files_in(jpeg)
    assert "archives without their index.jsonl" in refused(capsys, videos, jpeg)
    assert files_in(jpeg) == before
    for shard in jpeg.glob("*.tar"):  # a run that ended before its first video
        shard.unlink()
    assert run(videos, jpeg) == 0 and verify(jpeg) == 0


def test_damaged_videos_are_listed_for_the_reason_that_compressing_them_gives(tmp_path):
    root = tmp_path / "in"
    good = write_clip(root / "good.mp4", 30)
    (root / "cut.mp4").write_bytes(write_clip(tmp_path / "c.mp4", 30, movflags="faststart").read_bytes()[:-400])
    (root / "empty.avi").touch()
    (root / "folder.mkv").mkdir()
    (root / "link.mp4").symlink_to("nowhere")
    (root / "corrupted.mp4").symlink_to(shared_data("videos") / "corrupted.mp4")
    assert run(root, tmp_path / "out") == 1
    failures = failures_in(tmp_path / "out")
    assert set(failures) == {"cut.mp4", "empty.avi", "folder.mkv", "link.mp4", "corrupted.mp4"}
    assert list(PackIndex.open(tmp_path / "out").videos) == ["good.mp4"]
    with pytest.raises(DamagedVideo) as raised:
        compress(root / "corrupted.mp4", tmp_path / "compressed.mp4", CompressSettings())
    assert failures["corrupted.mp4"] == str(raised.value)
    # a failed video is tried again
    for name in failures:
        (root / name).rmdir() if (root / name).is_dir() else (root / name).unlink()
    shutil.copy(good, root / "cut.mp4")
    assert run(root, tmp_path / "out") == 0 and failures_in(tmp_path / "out") == {}
    assert list(PackIndex.open(tmp_path / "out").videos) == ["good.mp4", "cut.mp4"]


# --- Damage to a pack -------------------------------------------------------------------------------------


def flip(path, place):
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_any_flipped_bit_of_a_frame_is_noticed_and_can_be_mended(videos, packs, tmp_path, capsys, kind):
    pack = Path(shutil.copytree(packs / kind, tmp_path / "pack"))
    entry = PackIndex.open(pack).videos["class x/c.mp4"]
    first, size = int(entry.offsets[3]), int(entry.sizes[3])
    reader = PackReader(PackIndex.open(pack))
    for place in {first, first + size - 1, *np.random.default_rng(0).integers(first, first + size, 20).tolist()}:
        flip(pack / entry.shard, place)
        with pytest.raises(BadVideoError, match=rf"c.mp4: {entry.shard}: frame 3 of {entry.num_frames}.*checksum"):
            reader.read(pack / "class x/c.mp4", MANY, FrameSampler())
        flip(pack / entry.shard, place)
    flip(pack / entry.shard, first)
    assert len(reader.read(pack / "a.mp4", MANY, FrameSampler())) == 5  # the others are as they were
    assert verify(pack) == 1
    printed = capsys.readouterr().out
    assert "damaged: class x/c.mp4: " + entry.shard in printed and "1 damaged" in printed
    lines = (pack / "index.jsonl").read_text().splitlines(keepends=True)
    (pack / "index.jsonl").write_text("".join(line for line in lines if '"class x/c.mp4"' not in line))
    assert run(videos, pack, "--format", kind) == 0 and verify(pack) == 0
    assert np.array_equal(all_frames(pack, "class x/c.mp4"), all_frames(packs / kind, "class x/c.mp4"))


def test_a_shard_that_is_cut_off_while_it_is_read_is_a_bad_video(jpeg):
    reader = PackReader(PackIndex.open(jpeg))
    name, entry = next((n, v) for n, v in reader.index.videos.items() if v.shard == "frames-00001.tar")
    assert len(reader.read(jpeg / name, MANY, FrameSampler())) == entry.num_frames
    os.truncate(jpeg / entry.shard, int(entry.offsets[-1]) + 5)
    with pytest.raises(BadVideoError, match=r"frames-00001.tar: frame .* the shard ends before it"):
        reader.read(jpeg / name, MANY, FrameSampler())
    reader.close()
    (jpeg / entry.shard).unlink()
    with pytest.raises(BadVideoError, match=r"frames-00001.tar.*No such file"):
        reader.read(jpeg / name, MANY, FrameSampler())
    with pytest.raises(BadVideoError, match="not in the pack"):
        reader.read(jpeg / "other.mp4", MANY, FrameSampler())


def edit(entry, **changes):
    return json.dumps(entry | changes)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (lambda e: json.dumps(e)[:50], "cannot be read as JSON"),
        (lambda e: "[]", "not a line of this index"),
        (lambda e: "", "cannot be read as JSON"),
        (lambda e: json.dumps({k: v for k, v in e.items() if k != "shard"}), "shard"),
        (lambda e: edit(e, num_frames=e["num_frames"] + 1), "frames, but lists of"),
        (lambda e: edit(e, offsets=[], sizes=[], crc32=[], num_frames=0), "frames, but lists of"),
        (lambda e: edit(e, sizes=[-1] * e["num_frames"]), "sizes has numbers out of range"),
        (lambda e: edit(e, sizes=[10**30] * e["num_frames"]), "sizes is not a list of numbers"),
        (lambda e: edit(e, sizes=[[1], [1, 2]]), "sizes is not a list of numbers"),
        (lambda e: edit(e, sizes=["1"] * e["num_frames"]), "sizes is not a list of numbers"),
        (lambda e: edit(e, sizes=7), "sizes is not a list of numbers"),
        (lambda e: edit(e, crc32=[2**32] * e["num_frames"]), "crc32 has numbers out of range"),
        (lambda e: edit(e, crc32=None), "crc32 is not a list of numbers"),
        (lambda e: edit(e, offsets=[5.5] * e["num_frames"]), "offsets is not a list of numbers"),
        (lambda e: edit(e, offsets=e["offsets"][::-1]), "overlap"),
        (lambda e: edit(e, height=0), "pixels"),
        (lambda e: edit(e, shard="../frames-00000.tar"), "not the name of a shard"),
        (lambda e: edit(e, video="../a.mp4"), "not a path inside a folder"),
        (lambda e: edit(e, video="/a.mp4"), "not a path inside a folder"),
        (lambda e: edit(e, video="b.mkv"), "is there before"),
    ],
)
def test_a_damaged_line_of_the_index_is_named(jpeg, line, reason):
    lines = (jpeg / "index.jsonl").read_text().splitlines()
    lines[2] = line(json.loads(lines[2]))
    (jpeg / "index.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=rf"line 3 of .*index.jsonl is damaged: .*{reason}.*Remove the line"):
        PackIndex.open(jpeg)


def test_a_pack_that_lacks_something_says_what_and_what_to_do(jpeg, tmp_path, capsys):
    index = (jpeg / "index.jsonl").read_bytes()
    cases = {
        "the last line is incomplete": lambda: (jpeg / "index.jsonl").write_bytes(index[:-1]),
        "lists no video": lambda: (jpeg / "index.jsonl").write_bytes(b""),
        "holds no index.jsonl": (jpeg / "index.jsonl").unlink,
        "frames-00000.tar has .* cut off. Copy it again": lambda: os.truncate(jpeg / "frames-00000.tar", 600),
        "frames-00000.tar, a shard of this pack, cannot be read": (jpeg / "frames-00000.tar").unlink,
        "does not hold the settings of a pack": lambda: (jpeg / "pack_frames.json").write_text("{}"),
        "holds no pack_frames.json": (jpeg / "pack_frames.json").unlink,
    }
    for message, spoil in cases.items():
        before = files_in(jpeg)
        spoil()
        with pytest.raises(UserError, match=message):
            PackIndex.open(jpeg)
        with pytest.raises(SystemExit):
            verify(jpeg)
        for name, content in before.items():
            (jpeg / name).write_bytes(content)
    PackIndex.open(jpeg)


BROKEN_SETTINGS = ["", "[]", "[" * 100_000, '{"version": 1, "fps": "1/0"}', '{"version": 1, "fps": Infinity}']


@pytest.mark.parametrize("text", BROKEN_SETTINGS)
def test_damaged_settings_are_named(jpeg, text):
    (jpeg / "pack_frames.json").write_text(text)
    with pytest.raises(UserError, match=r"pack_frames\.json does not hold the settings of a pack"):
        PackIndex.open(jpeg)


def test_a_line_is_read_as_it_was_written(packs):
    for kind in ("jpeg", "raw"):
        for line in (packs / kind / "index.jsonl").read_text().splitlines():
            assert PackedVideo.from_line(line, kind).to_line() == line


# --- Training ---------------------------------------------------------------------------------------------


def test_videos_are_found_as_in_a_folder(videos, packs):
    pack = PackIndex.open(packs / "jpeg")
    ids = ("a", "A", "b", "e é", "f", "class x/c", "CLASS X/D", "class x/a", "class y/f", "c", "x/y/a", "none")
    found = set()
    for rules in ({}, {"ignore_case": True}, {"classes": ["class x", "class y"], "ignore_case": True}):
        in_pack, in_folder = VideoFiles(pack, **rules), VideoFiles(videos, **rules)
        assert not in_pack.problems
        for video_id in ids:
            paths = [path.relative_to(pack.path) for path in in_pack.find(video_id)]
            assert paths == [path.relative_to(videos) for path in in_folder.find(video_id)], video_id
            found |= {path.as_posix() for path in paths}
    assert found == set(pack.videos)


def test_a_reader_may_be_handed_to_another_process(packs):
    reader = PackReader(PackIndex.open(packs / "jpeg"))
    path = packs / "jpeg" / "a.mp4"
    frames = reader.read(path, 4, FrameSampler())
    assert np.array_equal(pickle.loads(pickle.dumps(reader)).read(path, 4, FrameSampler()), frames)


@pytest.fixture(scope="module")
def tiny_packs(tiny_run, tmp_path_factory):
    """The tiny run's videos packed at their own rate: raw and jpeg."""
    root = tmp_path_factory.mktemp("tiny_packs")
    source = tiny_run[tiny_run.index("--features_path") + 1]
    for kind in ("raw", "jpeg"):
        assert run(source, root / kind, "--fps", 8, "--format", kind) == 0
    return root


@pytest.mark.parametrize(("program", "flags"), [(RETRIEVAL, "tiny_run"), (RECOGNITION, "tiny_recognition")])
def test_training_on_raw_frames_is_training_on_the_videos(program, flags, tiny_packs, tmp_path, request):
    flags = request.getfixturevalue(flags)
    packed = [*without(flags, "--features_path"), "--packed", str(tiny_packs / "raw")]
    runs = {"videos": flags, "packed": packed, "workers": [*packed, "--num_thread_reader", "2"]}
    for name, given in runs.items():
        assert program([*given, *TINY_TRAINING, "--output_dir", str(tmp_path / name)]) == 0
    metrics = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in runs}
    assert metrics["videos"] == metrics["packed"] == metrics["workers"]


def test_a_run_is_continued_with_the_frames_that_it_began_with(tiny_run, tiny_packs, tmp_path, capsys):
    flags = without(tiny_run, "--features_path")
    output = ["--output_dir", str(tmp_path / "out")]
    assert RETRIEVAL([*flags, "--packed", str(tiny_packs / "raw"), *TINY_TRAINING, *output]) == 0
    moved = Path(shutil.copytree(tiny_packs / "raw", tmp_path / "moved"))
    assert RETRIEVAL([*flags, "--packed", str(moved), *TINY_TRAINING, *output]) == 0
    for other in (["--packed", str(tiny_packs / "jpeg")], tiny_run[2:4]):
        capsys.readouterr()
        assert RETRIEVAL([*flags, *other, *TINY_TRAINING, *output]) == 1
        assert "packed: was raw" in capsys.readouterr().err
    evaluation = [
        "--do_eval",
        "--init_model",
        str(tmp_path / "out" / "best.pt"),
        "--output_dir",
        str(tmp_path / "eval"),
    ]
    evaluation += TINY_TRAINING[-10:]
    assert RETRIEVAL([*flags, "--packed", str(tiny_packs / "jpeg"), *evaluation]) == 0


def test_missing_and_damaged_videos_are_treated_as_files_are(tiny_run, tiny_packs, tmp_path, capsys):
    pack = Path(shutil.copytree(tiny_packs / "jpeg", tmp_path / "pack"))
    flags = [*without(tiny_run, "--features_path"), "--packed", str(pack), *TINY_TRAINING]
    first, second, *_ = train_ids(tiny_run)
    lines = (pack / "index.jsonl").read_text().splitlines(keepends=True)
    (pack / "index.jsonl").write_text("".join(line for line in lines if f'"{first}.mp4"' not in line))
    assert RETRIEVAL([*flags, "--output_dir", str(tmp_path / "error")]) == 1
    message = capsys.readouterr().err
    assert f"{first}: no video file in {pack}" in message and "failed_videos.csv" in message
    entry = PackIndex.open(pack).videos[f"{second}.mp4"]
    for offset in entry.offsets:
        flip(pack / entry.shard, int(offset) + 30)
    flags += ["--allow_missing", "--output_dir", str(tmp_path / "out")]
    assert RETRIEVAL(flags) == 0
    assert first in (tmp_path / "out" / "missing_videos.csv").read_text()
    rows = rows_of(tmp_path / "out" / "bad_videos.csv")
    assert rows and {row["video"] for row in rows} == {str(pack / f"{second}.mp4")}
    assert all(entry.shard in row["reason"] and "checksum" in row["reason"] for row in rows)


def test_one_place_of_videos_is_given(tiny_run, tiny_packs, tmp_path, capsys):
    output = ["--do_eval", "--method", "zero_shot", "--output_dir", str(tmp_path)]
    for flags, reason in (
        ([*tiny_run, "--packed", str(tiny_packs / "raw")], "both are"),
        (without(tiny_run, "--features_path"), "neither is"),
        ([*without(tiny_run, "--features_path"), "--packed", str(tmp_path)], "is not a pack of frames"),
    ):
        capsys.readouterr()
        assert RETRIEVAL([*flags, *output]) == 1
        message = capsys.readouterr().err
        assert reason in message and "Traceback" not in message
    check = ["--datatype", "msrvtt", "--val_csv", tiny_run[tiny_run.index("--val_csv") + 1]]
    assert check_videos.main([*check, "--packed", str(tiny_packs / "raw"), "--output", str(tmp_path / "bad.csv")]) == 2
    assert "--verify" in capsys.readouterr().err


def test_a_pack_is_opened_once_and_no_process_is_started_to_read_it(packs, monkeypatch):
    location = VideoLocation(packed=packs / "jpeg")
    assert location.videos is location.pack is location.videos
    monkeypatch.setattr(subprocess, "Popen", None)
    sample = Sample("a", "a", packs / "jpeg" / "a.mp4", ("text",))
    dataset = TrainingDataset([sample], VideoSettings(4, 24, 0, pack=location.pack), replace_bad=False)
    assert dataset.read(0, 0).num_frames == 4
