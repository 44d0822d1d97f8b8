"""The MSR-VTT reader on real and made-up split files, and what it shares with the other readers."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from dataloaders.annotations import AnnotationError, show
from dataloaders.datasets.retrieval.lists import Listed
from dataloaders.datasets.retrieval.msrvtt import DATASET, read_eval, read_train
from dataloaders.samples import check_overlap, shared_videos
from dataloaders.video_files import VideoFiles
from helpers.annotations import write_captions, write_csv
from helpers.paths import SHARED_DATA

SPLITS = SHARED_DATA / "msrvtt"
needs_splits = pytest.mark.skipif(not SPLITS.is_dir(), reason=f"the MSR-VTT split files are not at {SPLITS}")


def make_videos(folder, video_ids, suffix=".mp4"):
    """Empty files: a reader looks at names only."""
    folder.mkdir(exist_ok=True)
    for video_id in video_ids:
        (folder / f"{video_id}{suffix}").touch()
    return folder


def problems_of(read, *arguments):
    """The problems for which a reader refuses its files, without the headline and the remedy."""
    with pytest.raises(AnnotationError) as caught:
        read(*arguments)
    headline, *problems, remedy = str(caught.value).splitlines()
    assert f"{len(problems)} problem" in headline and "--features_path" in remedy
    return [problem.removeprefix("  - ") for problem in problems]


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

    samples = read_train(SPLITS / name, data, videos, expand_sentences=False).samples
    assert [sample.video_id for sample in samples] == video_ids
    assert len(samples) == len({sample.sample_id for sample in samples}) == count
    for sample in samples:
        assert sample.path == videos / f"{sample.video_id}.mp4"
        assert sample.captions == tuple(f"{sample.video_id} caption {k}" for k in range(20))

    expanded = read_train(SPLITS / name, data, videos, expand_sentences=True).samples
    assert len(expanded) == len({sample.sample_id for sample in expanded}) == 20 * count
    assert [sample.captions[0] for sample in expanded] == [text for sample in samples for text in sample.captions]
    assert all(sample.captions[0].startswith(f"{sample.video_id} caption") for sample in expanded)


@needs_splits
def test_the_real_1ka_split(tmp_path):
    path = SPLITS / "MSRVTT_JSFUSION_test.csv"
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    samples = read_eval(path, make_videos(tmp_path / "videos", [row["video_id"] for row in rows])).samples
    assert len(samples) == 1000
    assert len({sample.video_id for sample in samples}) == 1000
    assert len({sample.captions for sample in samples}) == 995
    for sample, row in zip(samples, rows, strict=True):
        assert (sample.sample_id, sample.video_id) == (row["key"], row["video_id"])
        assert sample.captions == (row["sentence"].strip(),)
        assert sample.path.name == f"{row['video_id']}.mp4"


# Reading


def test_samples_keep_the_order_of_the_split_and_of_the_captions(train_files):
    samples = read_train(*train_files, expand_sentences=False).samples
    assert [sample.captions for sample in samples] == [("two a", "two b"), ("zero a", "null")]
    expanded = read_train(*train_files, expand_sentences=True).samples
    assert [sample.sample_id for sample in expanded] == ["video2#0", "video2#1", "video0#0", "video0#1"]
    assert [sample.captions for sample in expanded] == [("two a",), ("two b",), ("zero a",), ("null",)]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, newline, encoding):
    rows = ['ret0,msr0,video5,"a man, singing"', "ret1,msr1,video6,nan", "ret2,msr2,video7,der Flügel"]
    path = write_csv(tmp_path / "test.csv", "key,vid_key,video_id,sentence", *rows, newline=newline, encoding=encoding)
    samples = read_eval(path, make_videos(tmp_path / "videos", ["video5", "video6", "video7"], ".webm")).samples
    assert [sample.sample_id for sample in samples] == ["ret0", "ret1", "ret2"]
    assert [sample.captions[0] for sample in samples] == ["a man, singing", "nan", "der Flügel"]


def test_videos_come_in_any_container(tmp_path):
    for name in ["a.mp4", "b.AVI", "c.Mkv", "d.webm", "notes.txt", "._a.mov", "e.f.mp4"]:
        (tmp_path / name).touch()
    videos = VideoFiles(tmp_path)
    assert videos.problems == []
    assert {stem: [path.name for path in videos.find(stem)] for stem in ("a", "b", "c", "d", "e.f", "e", "notes")} == {
        "a": ["a.mp4"],
        "b": ["b.AVI"],
        "c": ["c.Mkv"],
        "d": ["d.webm"],
        "e.f": ["e.f.mp4"],
        "e": [],
        "notes": [],
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
        f"sentence 3 of {data}: video3: empty caption",
        f"sentence 1 of {data}: video0: empty caption",
        f"line 6 of {train_csv}: video_id video0 is there before, in line 2",
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
    # The header is line 1.
    assert lines[1:11] == [f"  - line {i + 2} of {path}: video{i}: no video file in {videos}" for i in range(2, 12)]
    assert "25 more" in lines[11]
    assert "no video file" not in lines[12]


def test_all_problems_of_an_evaluation_split_are_in_one_message(tmp_path):
    rows = ["ret0,msr0,video0,   ", "ret1,msr1,video1,one", "ret1,msr2,video2,two", "ret3,msr3,,three"]
    path = write_csv(tmp_path / "test.csv", "key,vid_key,video_id,sentence", *rows)
    with pytest.raises(AnnotationError, match="4 problems") as caught:
        read_eval(path, make_videos(tmp_path / "videos", ["video0", "video2"]))
    for part in [
        f"line 2 of {path}: empty sentence",
        f"line 4 of {path}: key ret1 is there before, in line 3",
        f"line 3 of {path}: video1: no video",
        f"line 5 of {path}: empty video_id",
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
        ("{", "line 1, column 2 of .*: cannot be read as JSON"),
        ('{"sentences": [\r\n{"caption": "a"\r\n]}', "line 3, column 1 of .*: cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("", "data.json is empty"),
        ("[]", "needs an object that is not empty, found \\[\\]"),
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
    "content, reason",
    [
        ("", "train.csv is empty"),
        ("\ufeff\r\n \n", "train.csv is empty"),
        ('""', "train.csv is empty"),
        ("video_id\n", "no rows"),
        ("video2\nvideo0\n", r"line 1 of .*train.csv: needs the columns \['video_id'\]"),
        ("\nvideo_id,video_id\nvideo2,video0\n", "line 2 of .*train.csv: more than one column video_id"),
    ],
)
def test_a_split_without_rows_is_refused(train_files, content, reason):
    train_csv, data, videos = train_files
    train_csv.write_text(content)
    with pytest.raises(AnnotationError, match=f"1 problem\n.*{reason}"):
        read_train(train_csv, data, videos, expand_sentences=False)


def test_a_folder_without_usable_videos_is_said(tmp_path, train_files):
    train_csv, data, videos = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "a,,video2,2")
    for path in videos.iterdir():
        path.rename(path.with_suffix(".zip"))
    (tmp_path / "file").touch()
    for folder, reason in [
        (tmp_path / "gone", f"the video folder {tmp_path / 'gone'} does not exist"),
        (tmp_path / "file", f"the video folder {tmp_path / 'file'} cannot be read: Not a directory"),
        (videos, f"the video folder {videos} holds no videos ("),
    ]:
        for allowed in (False, True):
            (problem,) = problems_of(read_train, train_csv, data, folder, False, allowed)
            assert problem.startswith(reason)
            assert problems_of(read_eval, test_csv, folder, allowed) == [problem]
    assert "3 files with other suffixes (.zip)" in problem


EVAL_HEADER = "key,vid_key,video_id,sentence"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_problems_name_the_line_of_the_file(tmp_path, newline, encoding):
    rows = [
        "",
        f'ret0,msr0,video0,"two{newline}lines, one text"',  # lines 3 and 4
        "   ",
        "ret1,msr1,video1,",  # line 6
        f'ret2,msr2,video1,"three{newline}{newline}lines"',
        "ret3,msr3,video1",  # line 10
        "ret4,msr4,video1,a man, singing",
        "ret0,msr5,video1,five",
        "ret6,msr6,video6,six",
    ]
    path = write_csv(tmp_path / "test.csv", EVAL_HEADER, *rows, newline=newline, encoding=encoding)
    videos = make_videos(tmp_path / "videos", ["video0", "video1"])
    fields = "fields, the header has 4; a text with commas needs quotation marks"
    assert problems_of(read_eval, path, videos) == [
        f"line 6 of {path}: empty sentence",
        f"line 10 of {path}: 3 {fields}",
        f"line 11 of {path}: 5 {fields}",
        f"line 12 of {path}: key ret0 is there before, in line 3",
        f"line 13 of {path}: video6: no video file in {videos}",
    ]


def test_a_caption_may_span_lines_and_hold_quotation_marks(tmp_path):
    path = write_csv(
        tmp_path / "test.csv", EVAL_HEADER, 'ret0,msr0,video0,"he says ""hi"",\n\nand so on"', newline="\n"
    )
    (sample,) = read_eval(path, make_videos(tmp_path / "videos", ["video0"])).samples
    assert sample.captions == ('he says "hi",\n\nand so on',)


@pytest.mark.parametrize("rest", [3, 50_000])  # below and above what the parser takes as one field
def test_a_quotation_mark_that_is_never_closed_is_named_with_its_line(tmp_path, rest):
    rows = ['ret0,msr0,video0,"one, closed"', 'ret1,msr1,video0,"two', *["ret2,msr2,video0,three"] * rest]
    path = write_csv(tmp_path / "test.csv", EVAL_HEADER, *rows)
    (problem,) = problems_of(read_eval, path, make_videos(tmp_path / "videos", ["video0"]))
    assert problem.startswith(f"line 3 of {path}: cannot be read as CSV") and "quotation mark" in problem


@pytest.mark.parametrize("blank", ["", "  ", "\t\u00a0", "\u200b", "\ufeff \u200b\u2060"])
def test_a_caption_of_which_nothing_is_seen_is_empty(tmp_path, train_files, blank):
    path = write_csv(tmp_path / "test.csv", EVAL_HEADER, "ret0,msr0,video0,text", f'ret1,msr1,video0,"{blank}"')
    assert problems_of(read_eval, path, train_files[2]) == [f"line 3 of {path}: empty sentence"]
    train_csv, data, videos = train_files
    write_captions(data, [("video2", "two"), ("video9", blank), ("video0", blank), ("video0", f"{blank}zero")])
    # Captions of videos outside of the split, here video9, do not matter.
    assert problems_of(read_train, train_csv, data, videos, True) == [f"sentence 2 of {data}: video0: empty caption"]


def test_a_caption_of_more_than_a_thousand_words_is_refused(tmp_path, train_files):
    train_csv, data, videos = train_files
    most, more, book = ("word " * 1000, "word " * 1001, "word\n" * 10_000)
    rows = [f'{len(text)},,video0,"{text}"' for text in (most, book, more)]
    path = write_csv(tmp_path / "test.csv", EVAL_HEADER, *rows)
    write_captions(data, [("video0", most), ("video0", more), ("video2", "two"), ("video2", book)])
    long = "a caption of 10,000 words; probably a quotation mark that is never closed"
    assert problems_of(read_eval, path, videos) == [
        f"line 3 of {path}: {long}",
        f"line 10004 of {path}: {long.replace('10,000', '1,001')}",
    ]
    assert problems_of(read_train, train_csv, data, videos, False) == [
        f"sentence 3 of {data}: video2: {long}",
        f"sentence 1 of {data}: video0: {long.replace('10,000', '1,001')}",
    ]


@pytest.mark.parametrize("text", ["a\0man", "half of \ud83d an emoji"])
def test_characters_that_are_no_text_are_refused(train_files, text):
    train_csv, data, videos = train_files
    write_captions(data, [("video0", text), ("video2", "whole 🎸")])
    (problem,) = problems_of(read_train, train_csv, data, videos, True)
    assert problem.startswith(f"sentence 0 of {data}: video0: a caption with characters that are no text: {text!r}")


def test_every_annotation_file_may_be_in_no_encoding_but_utf8(tmp_path, train_files):
    train_csv, data, videos = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "ret0,msr0,video0,der Flügel", encoding="latin-1")
    train_csv.write_bytes("video_id\nvideo2\nvideö0\n".encode("latin-1"))
    data.write_text('{"sentences":\n [{"caption": "é", "video_id": "video2"}]}', encoding="latin-1")
    (problem,) = problems_of(read_eval, test_csv, videos)
    assert f"line 2 of {test_csv}: not UTF-8" in problem
    first, second = problems_of(read_train, train_csv, data, videos, True)
    assert f"line 3 of {train_csv}: not UTF-8" in first and f"line 2 of {data}: not UTF-8" in second


# Videos without a file


def test_videos_without_a_file_are_left_out_and_listed_where_allowed(tmp_path, train_files):
    train_csv, data, videos = train_files
    write_csv(train_csv, "video_id", "video7", "video2", "gone", "video0")
    write_captions(data, [("video2", "two"), ("video0", "zero"), ("gone", "gone")])  # video7 has no captions either
    for expand in (False, True):
        listed = read_train(train_csv, data, videos, expand, allow_missing=True)
        assert [sample.video_id for sample in listed.samples] == ["video2", "video0"]
        assert listed.missing == ["video7", "gone"]
        assert len(problems_of(read_train, train_csv, data, videos, expand)) == 3

    rows = ["a,,gone,1", "b,,video2,2", "c,,gone,3", "d,,other,4", "e,,video2,5"]
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, *rows)
    listed = read_eval(test_csv, videos, allow_missing=True)
    assert [(sample.sample_id, sample.captions) for sample in listed.samples] == [("b", ("2",)), ("e", ("5",))]
    assert listed.missing == ["gone", "other"]
    assert problems_of(read_eval, test_csv, videos) == [
        f"line 2 of {test_csv}: gone: no video file in {videos}",
        f"line 5 of {test_csv}: other: no video file in {videos}",
    ]


def test_that_every_video_is_missing_is_an_error_even_where_allowed(tmp_path, train_files):
    train_csv, data, _ = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "a,,video2,2", "b,,video0,1", "c,,video0,3")
    other = make_videos(tmp_path / "other", ["video9"])
    assert problems_of(read_train, train_csv, data, other, True, True) == [
        f"none of the 2 videos in {train_csv} has a video file in {other}"
    ]
    assert problems_of(read_eval, test_csv, other, True) == [
        f"none of the 2 videos in {test_csv} has a video file in {other}"
    ]
    (problem,) = problems_of(read_eval, test_csv, tmp_path / "gone", True)
    assert "does not exist" in problem


def test_a_folder_or_a_link_to_nothing_is_no_video_file(tmp_path):
    (tmp_path / "video0.mp4").mkdir()
    (tmp_path / "video1.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "video2.mp4").symlink_to(tmp_path / "video2.mp4")
    (tmp_path / "real").touch()
    (tmp_path / "video3.mp4").symlink_to(tmp_path / "real")
    videos = VideoFiles(tmp_path)
    assert videos.problems == []
    found = [videos.find(f"video{k}") for k in range(4)]
    assert found == [[], [], [], [tmp_path / "video3.mp4"]]


@pytest.mark.parametrize(
    "form", ["../outside/video0", "{outside}/video0", "a/../../outside/video0", "..\\outside\\video0"]
)
def test_no_id_leads_out_of_the_video_folder(tmp_path, form):
    outside = make_videos(tmp_path / "outside", ["video0"])
    videos = make_videos(tmp_path / "videos", ["video1"])
    (videos / "a").mkdir()
    video_id = form.format(outside=outside)
    if "\\" not in form:
        assert (videos / f"{video_id}.mp4").is_file()  # what joining the two would read
    train_csv = write_csv(tmp_path / "train.csv", "video_id", video_id, "video1")
    data = write_captions(tmp_path / "data.json", [(video_id, "text"), ("video1", "text")])
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, f"a,,{video_id},1", "b,,video1,2")
    for read, path, *arguments in [(read_train, train_csv, data, videos, True), (read_eval, test_csv, videos)]:
        assert problems_of(read, path, *arguments) == [f"line 2 of {path}: {show(video_id)}: no video file in {videos}"]
        listed = read(path, *arguments, allow_missing=True)
        assert [sample.path for sample in listed.samples] == [videos / "video1.mp4"]
        assert listed.missing == [video_id]


# Videos in folders of their own


def test_videos_are_found_at_any_depth(tmp_path, train_files):
    train_csv, data, videos = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "a,,video9,nine", "b,,video0,zero")
    before = [read_train(train_csv, data, videos, True), read_eval(test_csv, videos)]
    (videos / "part 1" / "all").mkdir(parents=True)
    for path in list(videos.glob("*.mp4")):
        path.rename(videos / "part 1" / "all" / path.name)
    after = [read_train(train_csv, data, videos, True), read_eval(test_csv, videos)]
    for flat, deep in zip(before, after, strict=True):
        assert [sample.path.parent for sample in deep.samples] == [videos / "part 1" / "all"] * len(deep.samples)
        # Everything but the path is that of the flat folder: a run that was begun there goes on.
        moved = [replace(sample, path=videos / sample.path.name) for sample in deep.samples]
        assert Listed(moved, deep.missing) == flat


def test_files_of_one_name_stop_only_what_asks_for_them(tmp_path, train_files):
    train_csv, data, videos = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "a,,video9,nine")
    make_videos(videos, ["test", "video0"], ".avi")
    make_videos(videos, ["test"])
    (sample,) = read_eval(test_csv, videos).samples
    assert sample.path == videos / "video9.mp4"
    several = f"video0: more than one video file in {videos}: video0.avi, video0.mp4"
    for allowed in (False, True):
        assert problems_of(read_train, train_csv, data, videos, True, allowed) == [f"line 3 of {train_csv}: {several}"]
    with pytest.raises(AnnotationError, match=f"the list may give the path from {videos}") as caught:
        read_train(train_csv, data, videos, True)
    assert "--allow_missing" not in str(caught.value)


@pytest.mark.parametrize("video_id", ["video0.mp4", "b/video0", "b/video0.mp4", "deep/a/video0"])
def test_a_list_may_give_the_path_of_a_video(tmp_path, train_files, video_id):
    train_csv, data, videos = train_files
    for folder in ("a", "deep/a"):
        (videos / folder).mkdir(parents=True)
        make_videos(videos / folder, ["video0"], ".webm")
    (videos / "b").mkdir()
    (videos / "video0.mp4").rename(videos / "b" / "video0.mp4")
    write_csv(train_csv, "video_id", "video2", video_id)
    expected = videos / ("deep/a/video0.webm" if "deep" in video_id else "b/video0.mp4")
    for name in ("video0", video_id):  # the captions may be under either name
        write_captions(data, [("video2", "two"), (name, "zero a"), (name, "zero b")])
        _, *samples = read_train(train_csv, data, videos, True).samples
        assert [(s.sample_id, s.video_id, s.path, s.captions) for s in samples] == [
            (f"{video_id}#0", video_id, expected, ("zero a",)),
            (f"{video_id}#1", video_id, expected, ("zero b",)),
        ]
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, f"a,,{video_id},1")
    (sample,) = read_eval(test_csv, videos).samples
    assert (sample.sample_id, sample.video_id, sample.path) == ("a", video_id, expected)


def test_two_videos_of_one_name_do_not_share_captions(train_files):
    train_csv, data, videos = train_files
    for folder in ("a", "b"):
        make_videos(videos / folder, ["clip"])
    write_csv(train_csv, "video_id", "a/clip", "b/clip")
    write_captions(data, [("clip", "of which?")])
    assert problems_of(read_train, train_csv, data, videos, True) == [
        f"line {line} of {train_csv}: {folder}/clip: unknown to {data}, no captions"
        for line, folder in [(2, "a"), (3, "b")]
    ]
    write_captions(data, [("b/clip", "b"), ("a/clip", "a")])
    assert [sample.captions for sample in read_train(train_csv, data, videos, True).samples] == [("a",), ("b",)]


def test_a_file_under_two_ids_of_a_list_is_refused(tmp_path, train_files):
    train_csv, data, videos = train_files
    write_csv(train_csv, "video_id", "video2", "video0", "video0.mp4")
    double = "video0.mp4: the file of video0 (line 3 of {0})"
    assert problems_of(read_train, train_csv, data, videos, True) == [
        f"line 4 of {train_csv}: {double.format(train_csv)}"
    ]
    test_csv = write_csv(
        tmp_path / "test.csv", EVAL_HEADER, "a,,video2,1", "b,,video0,2", "c,,video0.mp4,3", "d,,video0,4"
    )
    assert problems_of(read_eval, test_csv, videos) == [f"line 4 of {test_csv}: {double.format(test_csv)}"]


# What helps


def message_of(read, *arguments):
    with pytest.raises(AnnotationError) as caught:
        read(*arguments)
    return str(caught.value)


def test_a_remedy_is_one_for_its_list_and_its_problem(tmp_path, train_files):
    train_csv, data, videos = train_files
    write_csv(train_csv, "video_id", "video2", "video0", "gone")
    write_captions(data, [(video_id, "text") for video_id in ("video2", "video0", "gone")])
    rows = ["a,,video2,1", "b,,gone,2"]
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, *rows)
    training, evaluation = (
        message_of(read_train, train_csv, data, videos, True),
        message_of(read_eval, test_csv, videos),
    )
    assert "--allow_missing" in training and "--on_bad_eval_video" not in training and "--val_csv" not in training
    assert "--on_bad_eval_video drop" in evaluation and "--allow_missing" not in evaluation
    assert not any(word in evaluation for word in ("--data_path", "--train_csv", "MSRVTT_data.json"))
    assert not any("--packed" in message or "failed_videos.csv" in message for message in (training, evaluation))
    # A flag that is given, or that would mend nothing, is not recommended.
    write_csv(train_csv, "video_id", "video2", "", "gone", "video2")
    write_csv(test_csv, EVAL_HEADER, *rows, "c,,video2,  ")
    for allowed, folder in ((True, videos), (False, tmp_path / "gone"), (False, make_videos(tmp_path / "none", ["x"]))):
        message = message_of(read_train, train_csv, data, folder, True, allowed)
        message += message_of(read_eval, test_csv, folder, allowed)
        assert "--allow_missing" not in message and "--on_bad_eval_video" not in message


# The dataset as the programs use it


def test_the_dataset_reads_from_its_settings(tmp_path, train_files):
    train_csv, data, videos = train_files
    test_csv = write_csv(tmp_path / "test.csv", EVAL_HEADER, "a,,video9,nine", "b,,gone,gone")
    settings = DATASET.settings(
        train_csv=train_csv, val_csv=test_csv, data_path=data, features_path=videos, expand_msrvtt_sentences=True
    )
    assert DATASET.read_train(settings) == read_train(train_csv, data, videos, True)
    assert len(DATASET.read_train(settings).samples) == 4
    with pytest.raises(AnnotationError, match="gone: no video file"):
        DATASET.read_eval(settings)
    assert DATASET.read_eval(settings, allow_missing=True).missing == ["gone"]
    (videos / "video0.mp4").unlink()
    assert DATASET.read_train(settings, allow_missing=True).missing == ["video0"]


@pytest.mark.parametrize(
    "train, test, official",
    [
        ("MSRVTT_train.9k.csv", "MSRVTT_JSFUSION_test.csv", True),
        ("MSRVTT_train.7k.csv", "MSRVTT_JSFUSION_test.csv", True),
        ("train.csv", "MSRVTT_JSFUSION_test.csv", False),
        ("MSRVTT_train.9k.csv", "test.csv", False),
        (None, "MSRVTT_JSFUSION_test.csv", False),
    ],
)
def test_official_splits_are_known_by_their_names(train, test, official):
    settings = DATASET.settings(
        train_csv=train and Path("a") / train, val_csv=Path("b") / test, features_path=Path("c")
    )
    assert DATASET.official(settings) is official


@needs_splits
@pytest.mark.parametrize("name", ["MSRVTT_train.9k.csv", "MSRVTT_train.7k.csv"])
def test_the_real_splits_share_no_video(tmp_path, name):
    test_csv = SPLITS / "MSRVTT_JSFUSION_test.csv"
    ids = []
    for path in (SPLITS / name, test_csv):
        with open(path, newline="", encoding="utf-8") as file:
            ids += [row["video_id"] for row in csv.DictReader(file)]
    data = write_captions(tmp_path / "data.json", [(video_id, "text") for video_id in ids])
    videos = make_videos(tmp_path / "videos", ids)
    settings = DATASET.settings(train_csv=SPLITS / name, val_csv=test_csv, data_path=data, features_path=videos)
    training, evaluation = DATASET.read_train(settings).samples, DATASET.read_eval(settings).samples
    assert list(shared_videos(training, evaluation)) == []
    assert check_overlap(training, evaluation, DATASET.official(settings), "MSR-VTT") is None
    # The same test would have seen a shared one.
    assert list(shared_videos([*training, evaluation[7]], evaluation)) == [evaluation[7].video_id]


# Sets


def test_a_column_of_sets_is_read_and_may_be_lacking(tmp_path):
    videos = make_videos(tmp_path / "videos", ["video0", "video1"])
    rows = ["ret0,msr0,video0,zero, 1 ", "ret1,msr1,video1,one,second", "ret2,msr2,video1,more,second"]
    path = write_csv(tmp_path / "sets.csv", EVAL_HEADER + ",set", *rows)
    assert [sample.test_set for sample in read_eval(path, videos).samples] == ["1", "second", "second"]
    plain = write_csv(tmp_path / "plain.csv", EVAL_HEADER, "ret0,msr0,video0,zero")
    assert [sample.test_set for sample in read_eval(plain, videos).samples] == [None]


def test_a_video_in_two_sets_and_a_row_without_one_are_problems(tmp_path):
    videos = make_videos(tmp_path / "videos", ["video0", "video1"])
    rows = ["ret0,msr0,video0,zero,1", "ret1,msr1,video1,one,", "ret2,msr2,video0,more,2"]
    path = write_csv(tmp_path / "sets.csv", EVAL_HEADER + ",set", *rows)
    assert problems_of(read_eval, path, videos) == [
        f"line 3 of {path}: empty set",
        f"line 4 of {path}: video0: in set 2, and in set 1 before (line 2 of {path}); a video belongs to one set",
    ]
