"""Finding bad videos before a run: in a folder and in a dataset's lists."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from pathlib import Path

import pytest

from common.settings import setting
from dataloaders.annotations import AnnotationError, raise_if_problems
from dataloaders.datasets import RETRIEVAL
from dataloaders.datasets.retrieval.lists import Listed, RetrievalDataset, Row, locate
from dataloaders.missing_videos import read_missing
from dataloaders.samples import Sample, VideoLocation
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from dataloaders.video_files import VideoFiles
from helpers.annotations import write_captions, write_csv, write_hmdb51
from helpers.faults import LIBRARY
from helpers.launching import start
from helpers.paths import ROOT
from helpers.runs import rows_of
from helpers.videos import damage, encode, noise, write_video
from modules.program.arguments import CommonSettings
from preprocess import check_videos
from preprocess.make_toy_dataset import DatasetSettings, make_dataset

HEADER = "step,epoch,sample,attempt,video,reason\n"


def check(output, *flags):
    """The exit code, and the rows as (video, reason)."""
    output.unlink(missing_ok=True)
    files = ("--output", output, "--missing_list", output.with_name("missing.csv"))
    code = check_videos.main([str(flag) for flag in (*flags, *files, "--num_workers", 2)])
    return code, read_rows(output) if output.exists() else None


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "epoch", "sample", "attempt", "video", "reason"]
    assert all(row[:4] == [""] * 4 for row in rows)
    return [(row[4], row[5]) for row in rows]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Good and bad videos in folders, by name the beginning of the reason or None."""
    root = tmp_path_factory.mktemp("clips")
    kinds = {
        "a/good.mp4": None,
        "a/b/good.MKV": None,
        "good.avi": None,
        "one.mp4": None,
        "a/empty.mp4": "the file is empty",
        "a/text.webm": "",
        "b/folder.mp4": "is a directory",
        "b/pipe.mkv": "is not a regular file",
        "b/link.mp4": "no such file",
        "b/truncated.mkv": "",
        "z, with a comma.mkv": "",
    }
    for name in kinds:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    write_video(root / "a" / "good.mp4")
    write_video(root / "a" / "b" / "good.mkv").rename(root / "a" / "b" / "good.MKV")
    write_video(root / "good.avi", codec="mpeg4")
    write_video(root / "one.mp4", frames=1)
    (root / "a" / "empty.mp4").touch()
    (root / "a" / "text.webm").write_text("no video" * 100)
    (root / "b" / "folder.mp4").mkdir()
    os.mkfifo(root / "b" / "pipe.mkv")
    (root / "b" / "link.mp4").symlink_to("nowhere")
    damage(encode(root / "b" / "truncated.mkv", noise(20, 64, 128)), 0.6, keep_length=False)
    shutil.copy(root / "b" / "truncated.mkv", root / "z, with a comma.mkv")
    (root / "a" / "again").symlink_to(root)  # a loop
    (root / ".hidden.mp4").touch()
    (root / "notes.txt").write_text("no video")
    return root, kinds


def test_every_bad_video_of_a_folder_is_found_and_no_other(clips, tmp_path, capsys, monkeypatch):
    root, kinds = clips
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # where a bar is seen
    code, rows = check(tmp_path / "new" / "bad.csv", "--features_path", root)
    expected = sorted(str(root / name) for name, reason in kinds.items() if reason is not None)
    assert code == 1
    assert [video for video, _ in rows] == expected
    for video, reason in rows:
        assert reason.startswith(kinds[os.path.relpath(video, root)]) and reason
    assert "breaks off" in dict(rows)[str(root / "b" / "truncated.mkv")]
    assert os.listdir(tmp_path / "new") == ["bad.csv"]  # no temporary file
    printed = capsys.readouterr()
    assert all(f"bad: {video}: {reason}" in printed.out.splitlines() for video, reason in rows)
    assert printed.out.splitlines()[-1].startswith(f"{len(kinds)} of {len(kinds)} videos read, {len(rows)} bad")
    assert f"bad={len(rows)}" in printed.err


def test_what_a_run_would_not_find_is_not_checked(clips, tmp_path, monkeypatch):
    root, _ = clips
    videos = tmp_path / "videos"
    for folder in ("part/one", ".trash", "lost+found"):
        (videos / folder).mkdir(parents=True)
        shutil.copy(root / "good.avi", videos / folder / "clip.avi")
    scandir = os.scandir

    def refuse(path):  # to root, every folder is open
        if os.path.basename(os.path.normpath(path)) == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    unread = (str(videos / "lost+found"), "a folder that cannot be read: Permission denied")
    assert check(tmp_path / "bad.csv", "--features_path", videos) == (1, [unread])
    plan = check_videos.plan_folder(videos)
    assert plan.paths == [videos / "part" / "one" / "clip.avi"]


def test_a_folder_without_videos_is_described(tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    for name in ("a.zip", "deep/b.zip", "deep/notes"):
        (tmp_path / name).touch()
    flags = ["--features_path", str(tmp_path), "--output", str(tmp_path / "bad.csv")]
    assert check_videos.main(flags) == 2
    message = capsys.readouterr().err
    assert f"--features_path {tmp_path} holds no videos (" in message
    assert "3 files with other suffixes (.zip, none)" in message


def test_reasons_are_those_of_a_run(clips, tmp_path):
    root, _ = clips
    _, rows = check(tmp_path / "bad.csv", "--features_path", root)
    reader = VideoReader(
        DecodingSettings(video_time_limit=CommonSettings.video_time_limit, decoder_errors=CommonSettings.decoder_errors)
    )
    for video, reason in rows:
        with pytest.raises(RuntimeError) as caught:
            reader.read(video, 12, FrameSampler(seed=3))
        assert caught.value.reason == reason
    reader.close()


def test_a_folder_of_good_videos_leaves_a_header(clips, tmp_path):
    root, _ = clips
    assert check(tmp_path / "bad.csv", "--features_path", root / "a" / "b") == (0, [])
    assert (tmp_path / "bad.csv").read_text() == HEADER


def test_patched_up_pictures_are_bad_unless_that_is_asked_for(tmp_path):
    path = encode(tmp_path / "clip.avi", noise(20, 64, 128), "mpeg4")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(range(1, 60)) + content[len(content) // 2 + 59 :])
    assert check(tmp_path / "bad.csv", "--features_path", tmp_path)[0] == 1
    assert check(tmp_path / "bad.csv", "--features_path", tmp_path, "--decoder_errors", "ignore")[0] == 0


def test_a_name_that_is_not_utf8_is_listed(clips, tmp_path):
    root, _ = clips
    shutil.copy(root / "a" / "good.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    code, rows = check(tmp_path / "bad.csv", "--features_path", tmp_path)
    assert code == 1
    assert rows == [(str(tmp_path / "\\udcff.mp4"), "its name is not UTF-8; rename it")]


def last_lines(capsys, count):
    """The cells of the last lines printed."""
    lines = capsys.readouterr().out.splitlines()[-count:]
    assert len({len(line) for line in lines}) == 1  # a table
    return [re.split("  +", line) for line in lines]


def test_the_videos_of_a_retrieval_run_are_checked(clips, tmp_path, capsys):
    root, _ = clips
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(6):
        shutil.copy(root / "a" / "good.mp4", videos / f"video{number}.mp4")
    (videos / "video1.mp4").write_bytes(b"")
    (videos / "video4.mp4").write_bytes(b"")
    (videos / "video5.mp4").write_bytes(b"")  # in neither list
    data = write_captions(tmp_path / "data.json", [(f"video{i}", f"text {k}") for i in (0, 1, 2, 7) for k in range(3)])
    train = write_csv(tmp_path / "train.csv", "video_id", "video0", "video1", "video2", "video7")
    header = "key,vid_key,video_id,sentence"
    test = write_csv(tmp_path / "test.csv", header, *(f"ret{i},msr{i},video{i},text" for i in (3, 4, 8)))
    flags = ("--datatype", "msrvtt", "--val_csv", test, "--features_path", videos)
    absent = f"no video file in {videos}"
    evaluation = [(str(videos / "video4.mp4"), "the file is empty"), ("video8", absent)]
    assert check(tmp_path / "bad.csv", *flags) == (1, evaluation)
    assert last_lines(capsys, 2) == [["list", "listed", "found", "readable"], ["evaluation", "3", "2", "1"]]
    assert rows_of(tmp_path / "missing.csv") == [{"list": "evaluation", "video": "video8"}]
    training = [(str(videos / "video1.mp4"), "the file is empty"), ("video7", absent)]
    both = ("--train_csv", train, "--data_path", data, "--expand_msrvtt_sentences")
    assert check(tmp_path / "bad.csv", *flags, *both) == (1, sorted(evaluation + training))
    counts = [["training", "4", "3", "2"], ["evaluation", "3", "2", "1"], ["all", "7", "5", "3"]]
    assert last_lines(capsys, 4) == [["list", "listed", "found", "readable"], *counts]
    assert read_missing(tmp_path / "missing.csv") == {"video7", "video8"}
    code, rows = check(tmp_path / "bad.csv", *flags, "--train_csv", train)  # would train on nothing
    assert (code, rows) == (2, None)


def test_the_videos_of_a_recognition_run_are_checked(clips, tmp_path, capsys):
    root, _ = clips
    splits = write_hmdb51(tmp_path / "splits")
    for path in list(splits.iterdir()):
        text = path.read_text()
        # the second split also tests what the first leaves out
        path.with_name(path.name.replace("split1", "split2")).write_text(
            text.replace("left out.avi 0", "left out.avi 2")
        )
        path.with_name(path.name.replace("split1", "split3")).write_text(text)
    videos = tmp_path / "videos"
    for name in ("climb/a_0", "climb/b_1", "climb_stairs/[tall] man climbs_1", "climb_stairs/left out", "climb/d_9"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "good.avi", videos / f"{name}.avi")
    for name in ("climb/b_1", "climb_stairs/left out", "climb/d_9"):  # the last is in no list
        (videos / f"{name}.avi").write_bytes(b"")
    flags = ("--datatype", "hmdb51", "--split_dir", splits, "--features_path", videos)
    absent = f"no video file in {videos}"
    first = [
        (str(videos / "climb" / "b_1.avi"), "the file is empty"),
        ("climb/c_2", absent),
        ("climb_stairs/Up#the_(old)_stairs!_&;_climb_f_cm_0", absent),
    ]
    assert check(tmp_path / "bad.csv", *flags, "--split", "1") == (1, first)
    header, training, test = ["list", "listed", "found", "readable"], ["3", "1", "0"], ["2", "2", "2"]
    assert last_lines(capsys, 4) == [header, ["training", *training], ["test", *test], ["all", "5", "3", "2"]]
    missing = [row["video"] for row in rows_of(tmp_path / "missing.csv") if row["list"] == "training"]
    assert missing == [name for name, reason in first if reason == absent]
    left_out = (str(videos / "climb_stairs" / "left out.avi"), "the file is empty")
    assert check(tmp_path / "bad.csv", *flags) == (1, sorted([*first, left_out]))
    rows = last_lines(capsys, 8)
    assert rows[0] == header and rows[-1] == ["all", "6", "4", "2"]  # each video once
    for number in (1, 2, 3):
        of_test = ["3", "3", "2"] if number == 2 else test
        assert rows[2 * number - 1 : 2 * number + 1] == [
            [f"split {number}, training", *training],
            [f"split {number}, test", *of_test],
        ]
    assert {row["list"] for row in rows_of(tmp_path / "missing.csv")} == {f"split {k}, training" for k in (1, 2, 3)}
    assert check(tmp_path / "bad.csv", *flags, "--split", "4") == (2, None)


@dataclass(frozen=True)
class OtherSettings(VideoLocation):
    """Flags of no dataset that there is."""

    pairs: Path | None = setting(None, "to train on", affects_results=False)
    queries: Path = setting(MISSING, "to evaluate on", affects_results=False)


def read_other(settings, which, allow_missing=False):
    path = getattr(settings, which)
    rows = [Row(f"line {number} of {path}", {"video_id": name}) for number, name in enumerate(path.read_text().split())]
    found = locate(rows, VideoFiles(settings.videos), "training", path, allow_missing)
    raise_if_problems("other", found.problems)
    return Listed([Sample(name, name, file, ("text",)) for name, file in found.paths.items()], found.missing)


def test_a_dataset_with_other_flags_is_checked_like_any(clips, tmp_path, capsys, monkeypatch):
    root, _ = clips
    readers = [partial(read_other, which=name) for name in ("pairs", "queries")]
    other = RetrievalDataset(OtherSettings, *readers, lambda settings: False, training_list="pairs")
    monkeypatch.setattr(check_videos, "RETRIEVAL", {"other": other})
    gone = [f"gone{number:02}" for number in range(25)]
    (tmp_path / "queries").write_text("\n".join(["one", *gone[:15]]))
    (tmp_path / "pairs").write_text("\n".join(["a/b/good", *gone[5:]]))
    flags = ("--datatype", "other", "--features_path", root, "--queries", tmp_path / "queries")
    assert check(tmp_path / "bad.csv", *flags)[0] == 1
    assert last_lines(capsys, 1) == [["evaluation", "16", "1", "1"]]
    code, rows = check(tmp_path / "bad.csv", *flags, "--pairs", tmp_path / "pairs")
    assert (code, len(rows)) == (1, 25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["all", "27", "2", "2"]
    assert lines[10] == f"... and 15 more, in {tmp_path / 'bad.csv'} when this ends" and len(lines) == 17
    assert read_missing(tmp_path / "missing.csv") == set(gone)


@pytest.mark.parametrize("name", RETRIEVAL)
def test_every_dataset_says_which_flag_names_its_training_list(name, tmp_path):
    dataset = RETRIEVAL[name]
    required = [field.name for field in fields(dataset.settings) if field.default is MISSING]
    settings = dataset.settings(features_path=tmp_path, **{name: tmp_path / name for name in required})
    with pytest.raises(AnnotationError) as caught:
        dataset.read_train(settings)
    if dataset.names_training(settings):
        assert "training on" not in str(caught.value)  # else a check without a training list would ask for one
    else:
        assert f"--{dataset.training_list}" in str(caught.value)
        assert dataset.names_training(replace(settings, **{dataset.training_list: tmp_path}))


LISTS_OF = {
    "vatex": {
        "--train_json": "vatex_training_v1.0.json",
        "--val_json": "vatex_validation_v1.0.json",
        "--val_list": "test_list.txt",
    },
    "activity": {"--train_json": "train.json", "--val_json": "val_1.json"},
    "didemo": {"--train_json": "train_data.json", "--val_json": "test_data.json"},
    "msvd": {"--train_list": "train_list.txt", "--val_list": "test_list.txt", "--data_path": "raw-captions.pkl"},
    "lsmdc": {
        "--train_csv": "LSMDC16_annos_training.csv",
        "--val_csv": "LSMDC16_challenge_1000_publictect.csv",
    },
    "kinetics400": {"--split_dir": "labels"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LISTS_OF)
def test_every_published_form_is_checked_and_its_list_names_what_is_gone(name, tmp_path, capsys):
    dataset = make_dataset(tmp_path / "toy", DatasetSettings(num_train=12, num_test=4, num_test_sets=1), form=name)
    flags = ["--datatype", name, "--features_path", dataset / "videos"]
    flags += [part for flag, file in LISTS_OF[name].items() for part in (flag, dataset / file)]
    assert check(tmp_path / "bad.csv", *flags) == (0, [])
    videos = sorted((dataset / "videos").rglob("*.mp4"))
    videos[0].unlink()
    code, bad = check(tmp_path / "bad.csv", *flags)
    assert code == 1 and len(bad) == 1 and videos[0].stem in bad[0][0]
    assert read_missing(tmp_path / "missing.csv") == {bad[0][0]}
    assert re.search(r"training +12 |test +4 |evaluation +4 ", capsys.readouterr().out)


def test_a_copy_without_training_videos_has_its_test_list_checked(clips, tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a_0", "[tall] man climbs_1"):
        shutil.copy(clips[0] / "good.avi", videos / f"{name}.avi")
    splits = write_hmdb51(tmp_path / "splits")
    flags = ("--datatype", "hmdb51", "--split_dir", splits, "--features_path", videos, "--split", "1")
    assert check(tmp_path / "bad.csv", *flags)[0] == 2  # no training video has a file
    assert check(tmp_path / "bad.csv", *flags, "--lists", "test") == (0, [])
    assert not re.search(r"^training ", capsys.readouterr().out, re.MULTILINE)


def test_flags_of_training_without_its_list_are_refused(clips, tmp_path, capsys):
    ids = tmp_path / "ids.txt"
    ids.write_text("a\n")
    flags = ("--datatype", "vatex", "--val_json", ids, "--train_list", ids, "--features_path", clips[0])
    assert check(tmp_path / "bad.csv", *flags)[0] == 2
    assert "--train_list: give --train_json too" in capsys.readouterr().err


def test_of_whole_lists_that_of_missing_videos_is_a_header(clips, tmp_path, capsys):
    root, _ = clips
    header = "key,vid_key,video_id,sentence"
    test = write_csv(tmp_path / "test.csv", header, "ret0,msr0,a/b/good,text", "ret1,msr1,a/b/good,more")
    flags = ("--datatype", "msrvtt", "--val_csv", test, "--features_path", root)
    assert check(tmp_path / "bad.csv", *flags) == (0, [])
    assert (tmp_path / "missing.csv").read_text() == "list,video\n"
    assert last_lines(capsys, 1) == [["evaluation", "1", "1", "1"]]  # videos, not captions
    assert check_videos.main([*map(str, flags), "--missing_list", str(tmp_path), "--output", str(test)]) == 2
    assert f"--missing_list {tmp_path} is a folder" in capsys.readouterr().err


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    """A folder in which every second video hangs, where decord does; `LIBRARY` says how."""
    (tmp_path / "fakes" / "decord").mkdir(parents=True)
    (tmp_path / "fakes" / "decord" / "__init__.py").write_text(LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fakes"))
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a_bad", "b_hang", "c_good", "d_hang", "e_good"):
        write_video(folder / f"{name}.mp4", frames=5)
    (folder / "a_bad.mp4").write_bytes(b"")
    return folder


def test_videos_that_hang_cost_their_time_side_by_side(hanging, tmp_path):
    start = time.monotonic()
    code, rows = check(tmp_path / "bad.csv", "--features_path", hanging, "--video_time_limit", 4)
    assert time.monotonic() - start < 4 * 2 + 12
    assert code == 1
    late = "not decoded within 4 seconds"
    expected = {"a_bad": "the file is empty", "b_hang": late, "d_hang": late}
    assert rows == [(str(hanging / f"{name}.mp4"), reason) for name, reason in expected.items()]


def test_ctrl_c_leaves_what_was_found(hanging, tmp_path):
    output = tmp_path / "bad.csv"
    command = [ROOT / "preprocess" / "check_videos.py", "--features_path", hanging, "--output", output]
    unbuffered = {"PYTHONUNBUFFERED": "1"}
    process = start(*command, "--num_workers", 1, environment=unbuffered, cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert process.stdout.readline().startswith("bad: ")
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    text, _ = process.communicate(timeout=30)
    assert time.monotonic() - sent < 15  # not the minute that the next video may take
    assert process.returncode == 130
    assert read_rows(output) == [(str(hanging / "a_bad.mp4"), "the file is empty")]
    assert "incomplete" in text.splitlines()[-1]


def test_what_cannot_start_says_so(clips, tmp_path, capsys):
    root, _ = clips
    (tmp_path / "nothing").mkdir()
    for flags, reason in {
        ("--features_path", tmp_path / "gone"): "is not a folder",
        ("--features_path", tmp_path / "nothing"): "holds no videos",
        ("--features_path", root, "--num_workers", 0): "--num_workers must be at least 1",
        ("--features_path", root, "--video_time_limit", 0): "--video_time_limit",
        ("--datatype", "ucf101", "--split_dir", tmp_path, "--features_path", root): "classInd.txt",
        ("--features_path", root, "--output", tmp_path): "is a folder",
    }.items():
        output = () if "--output" in flags else ("--output", tmp_path / "bad.csv")
        assert check_videos.main([str(flag) for flag in (*output, *flags)]) == 2
        printed = capsys.readouterr().err
        assert reason in printed and "Traceback" not in printed
    with pytest.raises(SystemExit) as caught:
        check_videos.main(["--datatype", "none"])
    assert caught.value.code == 2
    assert not (tmp_path / "bad.csv").exists()


def test_a_failure_of_the_decoding_process_is_no_bad_video(clips, tmp_path, monkeypatch):
    root, _ = clips

    def fail(reader, path):
        if path.name == "one.mp4":
            raise RuntimeError("did not start")
        return check_videos_reason(reader, path)

    check_videos_reason = check_videos.reason_of
    monkeypatch.setattr(check_videos, "reason_of", fail)
    with pytest.raises(RuntimeError, match="did not start"):
        check(tmp_path / "bad.csv", "--features_path", root)
    assert str(root / "one.mp4") not in dict(read_rows(tmp_path / "bad.csv"))
