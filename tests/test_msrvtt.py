"""The MSR-VTT reader on real and made-up split files, and what it shares with the other readers."""

import csv
import json
from pathlib import Path

import pytest

from dataloaders.msrvtt import read_eval, read_train
from dataloaders.samples import AnnotationError, scan_videos

SPLITS = Path(__file__).resolve().parents[2] / "shared" / "data" / "msrvtt"
needs_splits = pytest.mark.skipif(not SPLITS.is_dir(), reason=f"the MSR-VTT split files are not at {SPLITS}")


def make_videos(folder, video_ids, suffix=".mp4"):
    """Empty files: a reader looks at names only."""
    folder.mkdir(exist_ok=True)
    for video_id in video_ids:
        (folder / f"{video_id}{suffix}").touch()
    return folder


def write_captions(path, captions):
    """`MSRVTT_data.json` in its published form from a list of (video id, caption)."""
    video_ids = list(dict.fromkeys(video_id for video_id, _ in captions))
    videos = [
        {
            "category": 9,
            "url": "https://www.youtube.com/watch?v=9lZi22qLlEo",
            "video_id": video_id,
            "start time": 137.72,
            "end time": 149.44,
            "split": "train",
            "id": number,
        }
        for number, video_id in enumerate(video_ids)
    ]
    sentences = [
        {"caption": caption, "video_id": video_id, "sen_id": number}
        for number, (video_id, caption) in enumerate(captions)
    ]
    path.write_text(json.dumps({"info": {"year": "2016"}, "videos": videos, "sentences": sentences}))
    return path


def write_csv(path, header, *rows, newline="\r\n", encoding="utf-8"):
    path.write_bytes((newline.join([header, *rows]) + newline).encode(encoding))
    return path


@pytest.fixture
def train_files(tmp_path):
    """Three videos; the JSON holds their captions interleaved, and those of a video outside of the split."""
    captions = [
        ("video2", "two a"),
        ("video0", "zero a"),
        ("video2", "two b"),
        ("video9", "nine"),
        ("video0", "null"),
    ]
    return (
        write_csv(tmp_path / "train.csv", "video_id", "video2", "video0"),
        write_captions(tmp_path / "MSRVTT_data.json", captions),
        make_videos(tmp_path / "videos", ["video0", "video2", "video9"]),
    )


# The real split files


@needs_splits
@pytest.mark.parametrize("name, count", [("MSRVTT_train.9k.csv", 9000), ("MSRVTT_train.7k.csv", 7010)])
def test_the_real_training_splits(tmp_path, name, count):
    with open(SPLITS / name, newline="") as file:
        video_ids = [row["video_id"] for row in csv.DictReader(file)]
    videos = make_videos(tmp_path / "videos", video_ids)
    captions = [(video_id, f"{video_id} caption {k}") for k in range(20) for video_id in reversed(video_ids)]
    data = write_captions(tmp_path / "MSRVTT_data.json", captions)

    samples = read_train(SPLITS / name, data, videos, expand_sentences=False)
    assert [sample.video_id for sample in samples] == video_ids
    assert len(samples) == len({sample.sample_id for sample in samples}) == count
    for sample in samples:
        assert sample.path == videos / f"{sample.video_id}.mp4"
        assert sample.captions == tuple(f"{sample.video_id} caption {k}" for k in range(20))

    expanded = read_train(SPLITS / name, data, videos, expand_sentences=True)
    assert len(expanded) == len({sample.sample_id for sample in expanded}) == 20 * count
    assert [sample.captions[0] for sample in expanded] == [text for sample in samples for text in sample.captions]
    assert all(sample.captions[0].startswith(f"{sample.video_id} caption") for sample in expanded)


@needs_splits
def test_the_real_1ka_split(tmp_path):
    path = SPLITS / "MSRVTT_JSFUSION_test.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    samples = read_eval(path, make_videos(tmp_path / "videos", [row["video_id"] for row in rows]))
    assert len(samples) == 1000
    assert len({sample.video_id for sample in samples}) == 1000
    assert len({sample.captions for sample in samples}) == 995
    for sample, row in zip(samples, rows, strict=True):
        assert (sample.sample_id, sample.video_id) == (row["key"], row["video_id"])
        assert sample.captions == (row["sentence"].strip(),)
        assert sample.path.name == f"{row['video_id']}.mp4"


# Reading


def test_samples_keep_the_order_of_the_split_and_of_the_captions(train_files):
    samples = read_train(*train_files, expand_sentences=False)
    assert [sample.captions for sample in samples] == [("two a", "two b"), ("zero a", "null")]
    expanded = read_train(*train_files, expand_sentences=True)
    assert [sample.sample_id for sample in expanded] == ["video2#0", "video2#1", "video0#0", "video0#1"]
    assert [sample.captions for sample in expanded] == [("two a",), ("two b",), ("zero a",), ("null",)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, newline, encoding):
    rows = ['ret0,msr0,video5,"a man, singing"', "ret1,msr1,video6,nan", "ret2,msr2,video7,der Flügel"]
    path = write_csv(tmp_path / "test.csv", "key,vid_key,video_id,sentence", *rows, newline=newline, encoding=encoding)
    samples = read_eval(path, make_videos(tmp_path / "videos", ["video5", "video6", "video7"], ".webm"))
    assert [sample.sample_id for sample in samples] == ["ret0", "ret1", "ret2"]
    assert [sample.captions[0] for sample in samples] == ["a man, singing", "nan", "der Flügel"]


def test_videos_come_in_any_container(tmp_path):
    for name in ["a.mp4", "b.AVI", "c.Mkv", "d.webm", "notes.txt", "._a.mov", "e.f.mp4"]:
        (tmp_path / name).touch()
    videos, problems = scan_videos(tmp_path)
    assert problems == []
    assert {stem: path.name for stem, path in videos.items()} == {
        "a": "a.mp4",
        "b": "b.AVI",
        "c": "c.Mkv",
        "d": "d.webm",
        "e.f": "e.f.mp4",
    }


# Files that do not fit together


def test_all_problems_of_a_training_split_are_in_one_message(tmp_path):
    train_csv = write_csv(tmp_path / "train.csv", "video_id", "video0", "video1", "video2", "video3", "video0")
    captions = [("video0", "zero"), ("video0", "  "), ("video2", "two"), ("video3", "")]
    data = write_captions(tmp_path / "data.json", captions)
    videos = make_videos(tmp_path / "videos", ["video0", "video1", "video3"])
    with pytest.raises(AnnotationError) as caught:
        read_train(train_csv, data, videos, expand_sentences=True)
    message = str(caught.value)
    for part in [
        "video1: unknown",
        "video2: no video file",
        "video3: caption 0",
        "video0: caption 1",
        "video0: more",
    ]:
        assert part in message
    for part in [str(train_csv), str(data), str(videos), "--data_path", "--features_path"]:
        assert part in message


def test_ten_problems_are_listed_and_all_are_counted(tmp_path):
    path = write_csv(tmp_path / "train.csv", "video_id", *(f"video{i}" for i in range(37)))
    data = write_captions(tmp_path / "data.json", [(f"video{i}", "text") for i in range(37)])
    videos = make_videos(tmp_path / "videos", ["video0", "video1"])
    with pytest.raises(AnnotationError, match="35 problems") as caught:
        read_train(path, data, videos, expand_sentences=False)
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines[1:11]] == [f"video{i}:" for i in range(2, 12)]
    assert "25 more" in lines[11]
    assert "no video file" not in lines[12]


def test_all_problems_of_an_evaluation_split_are_in_one_message(tmp_path):
    rows = ["ret0,msr0,video0,   ", "ret1,msr1,video1,one", "ret1,msr2,video2,two", "ret3,msr3,,three"]
    path = write_csv(tmp_path / "test.csv", "key,vid_key,video_id,sentence", *rows)
    with pytest.raises(AnnotationError, match="4 problems") as caught:
        read_eval(path, make_videos(tmp_path / "videos", ["video0", "video2"]))
    for part in [
        "row 1 of",
        "empty sentence",
        "ret1: more than one",
        "video1: no video",
        "row 4 of",
        "empty video_id",
    ]:
        assert part in str(caught.value)


def test_missing_columns_are_named_and_the_rest_is_still_checked(tmp_path):
    path = write_csv(tmp_path / "test.csv", "key,vid_key,video_id,text", "ret0,msr0,video0,a", "ret1,msr1,video1,b")
    with pytest.raises(AnnotationError, match="2 problems") as caught:
        read_eval(path, make_videos(tmp_path / "videos", ["video0"]))
    assert "missing ['sentence'], found ['key', 'vid_key', 'video_id', 'text']" in str(caught.value)
    assert "video1: no video file" in str(caught.value)


def test_missing_files_are_problems_once_each(tmp_path, train_files):
    train_csv, data, videos = train_files
    gone = tmp_path / "gone"
    with pytest.raises(AnnotationError, match="3 problems"):
        read_train(gone, gone, gone, expand_sentences=False)
    for files in [(gone, data, videos), (train_csv, gone, videos), (train_csv, data, gone)]:
        with pytest.raises(AnnotationError, match=r"1 problem\n.*gone"):
            read_train(*files, expand_sentences=False)
    with pytest.raises(AnnotationError, match="2 problems"):
        read_eval(gone, gone)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "cannot be read as JSON"),
        ("[]", "needs a list 'sentences'"),
        ('{"videos": []}', r"needs a list 'sentences' of captions, found \['videos'\]"),
        ('{"sentences": []}', "needs a list 'sentences'"),
        ('{"sentences": [{"caption": 3, "video_id": "video2"}, "x"]}', "2 problems"),
    ],
)
def test_malformed_captions_are_refused(train_files, content, reason):
    train_csv, data, videos = train_files
    data.write_text(content)
    with pytest.raises(AnnotationError, match=reason):
        read_train(train_csv, data, videos, expand_sentences=False)


@pytest.mark.parametrize(
    "content, reason", [("", "cannot be read"), ("video_id\n", "no rows"), ("\x00\x01", "video_id")]
)
def test_a_split_without_rows_is_refused(train_files, content, reason):
    train_csv, data, videos = train_files
    train_csv.write_text(content)
    with pytest.raises(AnnotationError, match=reason):
        read_train(train_csv, data, videos, expand_sentences=False)


def test_a_folder_without_usable_videos_is_said(tmp_path):
    assert scan_videos(tmp_path / "gone") == ({}, [f"the video folder {tmp_path / 'gone'} does not exist"])
    videos, problems = scan_videos(tmp_path)
    assert videos == {} and "holds no videos" in problems[0]
    make_videos(tmp_path, ["video0"], ".mp4")
    make_videos(tmp_path, ["video0"], ".avi")
    assert "video0.avi and video0.mp4" in scan_videos(tmp_path)[1][0]
