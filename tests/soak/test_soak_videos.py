"""Damaged clips and memory, in small; and what the soak test has found in the video reader."""

import shutil
import sys

import numpy as np
import pytest

from dataloaders.video import decoding
from dataloaders.video.decoding import BadVideoError, find_damage
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from helpers.launching import run_code
from helpers.paths import ROOT
from soak_videos import (
    CLIPS,
    DAMAGED_REAL_CLIPS,
    REAL_CLIPS,
    Helper,
    HelperLost,
    cut,
    flip,
    judge_apart,
    make_mutant,
    make_small_clips,
    make_sources,
    measure_growth,
    measure_leak,
    mutate,
    read_apart,
    soak_mutations,
)

needs_statm = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_small_clips(tmp_path_factory.mktemp("clips"))


def read_alone(path, library):
    """Read a clip by one library in a child; "" or why it is refused."""
    code = (
        "from dataloaders.video import decoding, reader; libraries = decoding._libraries(); "
        f"decoding._libraries = lambda: {{{library!r}: libraries[{library!r}]}}; reader.serve()"
    )
    reader = VideoReader(DecodingSettings(video_time_limit=20), command=(sys.executable, "-c", code))
    try:
        reader.read(path, 4, FrameSampler())
    except BadVideoError as error:
        return error.reason
    finally:
        reader.close()
    return ""


# Mutations


def test_the_same_seed_makes_the_same_bytes(clips, tmp_path):
    again = make_small_clips(tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in clips]
    first, second = ([make_mutant(sources, 3, index) for index in range(30)] for sources in (clips, again))
    assert first == second
    assert first != [make_mutant(clips, 4, index) for index in range(30)]
    assert len({mutant.kind for mutant in first}) == 5
    assert {mutant.container for mutant in first} == {"mp4", "avi", "mkv", "webm", "mov"}


@pytest.mark.slow
def test_every_clip_is_written_also_where_a_program_was_imported_first(tmp_path):
    # once decord is loaded, which the programs import, PyAV cannot open its VP9 encoder unless it was loaded before
    paths = [str(ROOT / "tests"), str(ROOT / "tests" / "soak")]
    code = (
        f"import sys; sys.path[:0] = {paths}; import helpers.runs, soak_videos; "
        f"print(len(soak_videos.make_small_clips({str(tmp_path)!r})))"
    )
    assert run_code(code) == f"{len(CLIPS)}\n"


def test_mutations_change_what_they_say():
    data = np.random.default_rng(0).bytes(20_000)
    other = np.random.default_rng(1).bytes(9_000)
    seen = set()
    for seed in range(200):
        mutated, kind = mutate(data, np.random.default_rng(seed), other)
        seen.add(kind)
        if kind == "flip":
            bits = np.unpackbits(np.frombuffer(data, np.uint8) ^ np.frombuffer(mutated, np.uint8)).sum()
            assert 1 <= bits <= 20 or mutated == data  # a bit may be flipped twice
        elif kind == "cut end":
            assert data.startswith(mutated) and mutated
        elif kind == "splice copy":
            assert len(mutated) == len(data)
        else:
            assert (len(mutated) > len(data)) == (kind == "splice insert")
    assert seen == {"flip", "cut", "cut end", "splice copy", "splice insert"}


def test_the_real_clips_are_sources_where_they_are(tmp_path):
    sources = make_sources(tmp_path)
    assert [path.name for path in sources[: len(CLIPS)]] == list(CLIPS)
    real = sources[len(CLIPS) :]
    assert bool(real) == REAL_CLIPS.is_dir()
    assert not DAMAGED_REAL_CLIPS & {path.name for path in real}


def test_a_few_damaged_clips_are_contained_and_none_is_wrongly_good(tmp_path, monkeypatch):
    monkeypatch.setattr("soak_videos.REAL_CLIPS", tmp_path / "none")  # the real ones take long
    counts = soak_mutations(20, 5, tmp_path)
    assert counts.tried == 20 == counts.good + counts.bad + counts.hung + counts.crashed
    assert counts.bad > 5
    assert counts.uncontained == [] and counts.wrongly_good == []
    for group in (counts.by_container, counts.by_kind):
        assert sum(number for outcomes in group.values() for number in outcomes.values()) == 20


def test_what_crashes_or_hangs_a_process_is_seen_from_outside(clips):
    with Helper("os.abort") as helper, pytest.raises(HelperLost, match="exit code -6"):
        helper.ask({}, 60)
    with Helper("time.sleep(60) or serve_reads") as helper, pytest.raises(HelperLost, match="no answer"):
        helper.ask({}, 0.1)
    with Helper("os.abort") as helper:
        assert judge_apart(helper, clips[0]) is None
        assert read_apart(helper, clips[0], clips[0])[0] == "uncontained"


def test_the_strict_decoder_takes_intact_clips_only(clips, tmp_path):
    with Helper("serve_judgements") as judge:
        for clip in clips:
            assert judge_apart(judge, clip) == ""
            holed = tmp_path / clip.name
            data = clip.read_bytes()
            middle = len(data) // 2
            holed.write_bytes(data[: middle - 500] + bytes(1_000) + data[middle + 500 :])
            # libav reads any bytes as VP8 or VP9; in their containers it misses what lies between two pictures
            assert judge_apart(judge, holed) or clip.suffix == ".webm"


# Memory


@needs_statm
def test_memory_is_measured_over_children(tmp_path):
    growth = measure_growth(300, 0, tmp_path)
    assert (growth.decodes, growth.children) == (300, 1)
    assert growth.worker_growth_mb < 10 and growth.child_growth_mb < 25


@needs_statm
def test_the_leak_of_one_library_is_measured(tmp_path):
    assert abs(measure_leak("OpenCV", False, 150, tmp_path)) < 200


# What the soak test has found


@pytest.mark.parametrize("library", ["decord", "OpenCV"])
def test_a_picture_that_was_made_up_is_damage(clips, tmp_path, library):
    # libav reports "concealing 3 DC, 3 AC, 3 MV errors in P frame" as information, and often nothing else
    if library == "decord" and decoding.decord is None:
        pytest.skip("decord has no wheel for this platform")
    data = clips[list(CLIPS).index("mpeg4.avi")].read_bytes()
    silent, path = 0, tmp_path / "flipped.avi"
    with Helper("serve_judgements") as judge:
        for seed in range(200):
            path.write_bytes(flip(data, np.random.default_rng(seed), b""))
            if (judge_apart(judge, path) or "").endswith("is corrupt"):  # and no error was logged
                silent += 1
                assert read_alone(path, library)
            if silent == 3:
                break
    assert silent == 3


def test_damage_is_found_among_other_reports():
    harmless = [
        "[OPENCV:FFMPEG:24] Could not find codec parameters",
        "Consider increasing the value for 'analyzeduration'",
        "[mpeg4 @ 0x55ab] [warning] packed B-frames",
        "[mov,mp4 @ 0x1] [NULL @ 0x2] [info] extradata",
        "",
    ]
    assert find_damage([]) == find_damage(harmless) == ""
    for line, damage in [
        ("[OPENCV:FFMPEG:16] no frame!", "no frame!"),
        ("[OPENCV:FFMPEG:32] concealing 3 DC errors", "concealing 3 DC errors"),
        ("[h264 @ 0x55ab] [error] no frame!", "[h264] no frame!"),
        ("[h264 @ 0x55ab] [info] concealing 3 DC errors", "[h264] concealing 3 DC errors"),
        ("[error] Invalid UE golomb code", "Invalid UE golomb code"),
        ("[h264 @ 0x55ab] no frame!", "[h264] no frame!"),  # of a decord that does not write levels
    ]:
        assert find_damage([*harmless, line + "\n", *harmless]) == damage
    assert find_damage(["free(): invalid pointer", *harmless]) == "free(): invalid pointer"


def test_damage_is_found_behind_many_harmless_reports():
    code = (
        "import os; from dataloaders.video import reader; out = os.fdopen(os.dup(1), 'w'); "
        "take = reader._capture_output(); os.write(2, b'[OPENCV:FFMPEG:24] odd\\n' * 10_000); "
        "os.write(1, b'[OPENCV:FFMPEG:16] broken\\n'); print([take(), take()], file=out)"
    )
    assert run_code(code) == "['broken', '']\n"


def test_a_matroska_file_with_holes_is_bad(clips, tmp_path):
    # decord leaves out what it cannot find, and says nothing; the times reach the end, as if the frame rate varied
    data = clips[list(CLIPS).index("vp9.webm")].read_bytes()
    path, reader, damaged = tmp_path / "holed.webm", VideoReader(DecodingSettings(video_time_limit=20)), 0
    with Helper("serve_judgements") as judge:
        for seed in range(60, 100):
            path.write_bytes(cut(data, np.random.default_rng(seed), b""))
            if judge_apart(judge, path):
                damaged += 1
                with pytest.raises(BadVideoError):
                    reader.read(path, 4, FrameSampler())
    reader.close()
    assert damaged > 5


@pytest.mark.parametrize("name", ["h264.mkv", "vp9.webm"])
def test_a_matroska_file_without_its_last_bytes_is_bad(clips, tmp_path, name):
    # too little to miss a frame by the count
    data = clips[list(CLIPS).index(name)].read_bytes()
    path = tmp_path / name
    reader = VideoReader(DecodingSettings(video_time_limit=20))
    for missing in (1, 10):
        path.write_bytes(data[:-missing])
        with pytest.raises(BadVideoError):
            reader.read(path, 4, FrameSampler())
    length = data.index(b"\x18\x53\x80\x67") + 4  # unknown, as a recorder leaves it that could not go back to it
    path.write_bytes(data[:length] + b"\x01" + b"\xff" * 7 + data[length + 8 :])
    assert len(reader.read(path, 4, FrameSampler())) == 4
    reader.close()


def test_a_bad_clip_does_not_cost_the_child(clips, tmp_path):
    bad = shutil.copy(clips[0], tmp_path / "short.mp4")
    with open(bad, "r+b") as file:
        file.truncate(1_000)
    reader = VideoReader(DecodingSettings(video_time_limit=20))
    frames = reader.read(clips[0], 4, FrameSampler())
    child = reader._child
    for _ in range(3):
        with pytest.raises(BadVideoError):
            reader.read(bad, 4, FrameSampler())
        assert np.array_equal(reader.read(clips[0], 4, FrameSampler()), frames)
    assert reader._child is child
    reader.close()
