"""Long videos as windows: where they lie, which frames they have, and that they are embedded as a run embeds a clip."""

import numpy as np
import pytest

from dataloaders.video import windows as reading
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import COMMAND, DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler, sample_frame_indices
from dataloaders.video.windows import Cutting, Plan, plan_windows, read_windows
from helpers.flags import path_of
from helpers.videos import damage, read_numbers, write_video
from modules.program.loading import load_run
from search.windows import embed_video, embed_videos, windows_of

CUTTING = Cutting(window=2.0, stride=1.0, num_frames=4)
RATE = 25


@pytest.fixture(scope="module")
def reader():
    reader = VideoReader(DecodingSettings())
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=160, gop=30)


@pytest.mark.parametrize("seconds", [0.04, 1.0, 2.0, 2.04, 2.96, 3.0, 7.0, 9.52])
def test_windows_cover_a_video_and_none_leaves_it(seconds):
    count = round(seconds * RATE)
    plan = plan_windows(np.arange(count) / RATE + 1.4, 1 / RATE, CUTTING)
    assert plan.seconds == pytest.approx(seconds)
    starts, ends = [span.start for span in plan.spans], [span.end for span in plan.spans]
    assert starts[0] == 0 and ends[-1] == pytest.approx(seconds)
    assert all(start <= end for start, end in zip(starts[1:], ends[:-1], strict=True)) and starts == sorted(set(starts))
    assert all(end - start == pytest.approx(min(2.0, seconds)) for start, end in zip(starts, ends, strict=True))
    assert all(start % 1 == 0 for start in starts[:-1])
    for span in plan.spans:  # slow reference: the frames that are shown from within the window
        inside = [frame for frame in range(count) if span.start - 1e-3 <= frame / RATE < span.end - 1e-3]
        assert list(span.frames) == [inside[i] for i in sample_frame_indices(len(inside), 4)]


def test_a_video_that_is_no_longer_than_a_window_is_read_as_a_run_reads_it():
    times = np.cumsum(np.random.default_rng(0).uniform(0.01, 0.09, 30))
    plan = plan_windows(times, 0.04, CUTTING)
    assert [list(span.frames) for span in plan.spans] == [sample_frame_indices(30, 4).tolist()]


def test_a_window_in_which_no_frame_begins_has_the_one_on_screen():
    plan = plan_windows(np.array([0.0, 0.5, 6.0]), 0.5, CUTTING)
    assert plan.seconds == 6.5
    assert [span.frames for span in plan.spans] == [(0, 1), (1,), (1,), (1,), (1,), (2,)]


def test_the_frames_come_once_each_in_one_pass_by_either_library(long_video, monkeypatch):
    expected = plan_windows(np.arange(160) / RATE, 1 / RATE, CUTTING)
    for hidden in (False, True):
        if hidden:
            monkeypatch.setattr(reading, "decord", None)
        plan, *frames = read_windows(long_video, CUTTING)
        assert plan == expected
        assert read_numbers(np.stack(frames)) == plan.wanted


def test_a_window_has_the_frames_of_its_time(reader, long_video):
    found = list(windows_of(reader, long_video, CUTTING, 64))
    plan = plan_windows(np.arange(160) / RATE, 1 / RATE, CUTTING)
    assert [(window.start, window.end) for window in found] == [span[:2] for span in plan.spans]
    for window, span in zip(found, plan.spans, strict=True):
        # of 128 columns the 64 in the middle are left: bits 2 to 5 of a frame's number
        columns = window.frames.float().mean(dim=(1, 2)).reshape(4, 4, 16).mean(2) > 128
        assert [int(sum(bit << place for place, bit in enumerate(row.tolist()))) for row in columns] == [
            frame >> 2 & 15 for frame in span.frames
        ]


def test_a_decoder_that_gives_up_midway_makes_what_came_before_void(long_video, monkeypatch):
    def breaks_off(path, cutting):
        for number, part in enumerate(with_decord(path, cutting)):
            if number == 9:
                raise reading.DecodingError("breaks off")
            yield part

    with_decord = reading._with_decord
    monkeypatch.setattr(reading, "_with_decord", breaks_off)
    parts = list(read_windows(long_video, CUTTING))
    assert [place for place, part in enumerate(parts) if isinstance(part, Plan)] == [0, 9]
    last = parts[10:]
    assert read_numbers(np.stack(last)) == parts[9].wanted

    class Reader:
        read_windows = staticmethod(read_windows)

    numbers = [window.number for window in windows_of(Reader(), long_video, CUTTING, 64)]
    assert numbers[-6:] == list(range(6)) and numbers.count(0) == 2


def test_what_is_damaged_near_its_end_is_bad_and_the_reader_goes_on(reader, long_video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(long_video.read_bytes())
    damage(broken, 0.9, keep_length=True)
    with pytest.raises(BadVideoError, match=r"broken\.mp4"):
        list(reader.read_windows(broken, CUTTING))
    with pytest.raises(BadVideoError, match="no such file"):
        list(reader.read_windows(tmp_path / "none.mp4", CUTTING))
    assert len(list(windows_of(reader, long_video, CUTTING, 24))) == 6
    taken = reader.read_windows(long_video, CUTTING)
    next(taken)
    taken.close()  # nobody wants the rest, which must not be taken for the next answer
    assert read_numbers(reader.read(long_video, 3, FrameSampler())) == [26, 80, 133]


def test_a_child_that_dies_midway_is_tried_once_more(long_video, tmp_path):
    count = tmp_path / "count"
    code = (
        "import os, signal\n"
        "from dataloaders.video import reader, windows\n"
        "def dying(path, cutting, complaints=None):\n"
        f"    with open({str(count)!r}, 'a+') as file: file.write('x')\n"
        "    for number, part in enumerate(windows.read_windows(path, cutting, complaints)):\n"
        f"        if number == 5 and os.path.getsize({str(count)!r}) == 1: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "        yield part\n"
        "reader.read_windows = dying\n"
        "reader.serve()\n"
    )
    reader = VideoReader(DecodingSettings(), (COMMAND[0], "-c", code))
    parts = list(reader.read_windows(long_video, CUTTING))
    reader.close()
    assert [place for place, part in enumerate(parts) if isinstance(part, Plan)] == [0, 5]
    assert count.read_text() == "xx"


def test_a_window_is_embedded_as_the_run_embeds_the_same_clip(reader, tiny_run, tmp_path):
    run = load_run(method="zero_shot", clip=path_of(tiny_run, "--pretrained_clip_name"), max_frames=4, max_words=12)
    short = sorted(path_of(tiny_run, "--features_path").glob("*.mp4"))[0]
    part = embed_video(run, reader, short, Cutting(8.0, 4.0, 4), 32)
    assert part.bounds == [(0.0, part.seconds)] and part.pictures[0][:2] == b"\xff\xd8"
    np.testing.assert_allclose(part.embeddings, run.embed_videos([short], num_workers=0), atol=1e-6)
    # 4 s of which the last 2 are those of a clip of their own; lossless, so that both show the same
    options = {"crf": "0", "preset": "ultrafast"}
    whole = write_video(tmp_path / "whole.mp4", frames=100, gop=1, options=options)
    alone = write_video(tmp_path / "alone.mp4", frames=50, gop=1, options=options)
    parts = [embed_video(run, reader, whole, CUTTING, batch_size) for batch_size in (1, 2, 32)]
    assert [bounds[0] for bounds in parts[0].bounds] == [0, 1, 2]
    np.testing.assert_allclose(parts[0].embeddings[0], run.embed_videos([alone], num_workers=0)[0], atol=1e-6)
    for other in parts[1:]:
        np.testing.assert_allclose(other.embeddings, parts[0].embeddings, atol=1e-6)


def test_a_list_of_videos_gives_what_each_alone_gives_and_why_the_bad_ones_are_bad(reader, long_video, tiny_run):
    run = load_run(method="zero_shot", clip=path_of(tiny_run, "--pretrained_clip_name"), max_frames=4, max_words=12)
    paths = [long_video, long_video.with_name("none.mp4"), write_video(long_video.with_name("short.mp4"), frames=30)]
    seen = []
    listed = embed_videos(run, paths, CUTTING, DecodingSettings(), 3, lambda *share: seen.append(share))
    results = list(listed)
    assert results[1] == "no such file" and len(results) == 3
    for path, result in zip(paths[::2], results[::2], strict=True):
        alone = embed_video(run, reader, path, CUTTING, 3)
        assert (result.seconds, result.bounds, result.pictures) == (alone.seconds, alone.bounds, alone.pictures)
        np.testing.assert_array_equal(result.embeddings, alone.embeddings)  # to the bit
    assert seen == sorted(seen) and [share for share in seen if share[1] == 1.0] == [(0, 1.0), (2, 1.0)]
