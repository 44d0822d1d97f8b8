"""What the readers share: annotation files as text, and two lists checked against each other."""

import os
from pathlib import Path

import pytest

from dataloaders.annotations import AnnotationError, read_text, show
from dataloaders.samples import Sample, check_overlap, shared_videos

# Text files


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_is_utf8_with_or_without_a_byte_order_mark(tmp_path, newline, encoding):
    text = newline.join(["der Flügel", "三人", "🎸", ""])
    (tmp_path / "file").write_bytes(text.encode(encoding))
    assert read_text(tmp_path / "file") == (text, [])


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "bad, reason",
    [
        ("Flügel".encode("latin-1"), "not UTF-8 (byte 0xfc)"),
        ("三".encode()[:2], "not UTF-8 (byte 0xe4)"),  # what remains of a file that was cut
        (b"\0\0\0", "NUL"),
    ],
)
def test_the_first_line_that_is_no_text_is_named(tmp_path, newline, mark, bad, reason):
    path = tmp_path / "my file"
    # U+2028 ends a line to str.splitlines, and to no editor.
    path.write_bytes(mark + newline.join(["one ü \u2028", "", ""]).encode() + bad)
    text, (problem,) = read_text(path)
    assert text == ""
    assert problem.startswith(f"line 3 of {path}: ") and reason in problem
    assert ("iconv -f LATIN1 -t UTF-8 '" in problem) == (reason != "NUL")


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-32"])
@pytest.mark.parametrize("order", ["LE", "BE"])
def test_utf16_and_utf32_are_recognised_by_their_marks(tmp_path, encoding, order):
    path = tmp_path / "file"
    path.write_bytes("\ufeffvideo_id\nvideo0\n".encode(encoding + order))
    _, (problem,) = read_text(path)
    assert problem.startswith(f"line 1 of {path}: {encoding}, not UTF-8") and f"iconv -f {encoding} -t UTF-8" in problem


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \r\n\n"])
def test_an_empty_file_is_one_problem(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert read_text(tmp_path / "file") == ("", [f"{tmp_path / 'file'} is empty"])


def test_what_cannot_be_read_is_a_problem(tmp_path, monkeypatch):
    assert read_text(tmp_path / "gone") == ("", [f"no such file: {tmp_path / 'gone'}"])
    assert read_text(tmp_path) == ("", [f"{tmp_path} cannot be read: Is a directory"])
    (tmp_path / "file").touch()
    assert read_text(tmp_path / "file" / "below")[1][0].startswith(f"{tmp_path / 'file' / 'below'} cannot be read: ")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # to root, every file is open
    assert read_text("file") == ("", ["file cannot be read: Permission denied"])


@pytest.mark.parametrize("text", ["video0\u200b", "video0\nvideo1", "\x1b[31mvideo0", "v" * 1000])
def test_a_name_in_a_message_is_one_line_that_shows_all_that_is_odd(text):
    assert show("der Flügel_(1)") == "der Flügel_(1)"
    shown = show(text)
    assert shown.isprintable() and shown != text and shown[1:60] == repr(text)[1:60] and len(shown) <= 80


# Two lists


def samples(folder, *names, prefix=""):
    """A sample for each name, `id` or `id=file`."""
    pairs = [(name.split("=") * 2)[:2] for name in names]
    return [Sample(f"{prefix}{i}", video, folder / f"{file}.mp4", ("text",)) for i, (video, file) in enumerate(pairs)]


def test_shared_videos_are_in_the_order_of_the_evaluation_each_once(tmp_path):
    training = samples(tmp_path, "a", "b", "c", "c", "d")
    assert list(shared_videos(training, samples(tmp_path, "d", "x", "b", "d", "b"))) == ["d", "b"]
    assert list(shared_videos(training, samples(tmp_path, "x", "y"))) == []
    # The same name in another folder is the same video.
    assert list(shared_videos(training, samples(tmp_path / "other", "x", "c"))) == ["c"]


def test_one_file_under_two_ids_is_one_video(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").touch()
    (tmp_path / "link.mp4").symlink_to("b.mp4")
    (tmp_path / "folder" / "link.mp4").symlink_to(tmp_path / "link.mp4")
    training = samples(tmp_path, "a", "b")
    evaluation = samples(tmp_path, "x=folder/../a", "y=link", "z=folder/link", "c")
    assert list(shared_videos(training, evaluation)) == ["x", "y", "z"]
    assert list(shared_videos(evaluation, training)) == ["a", "b"]
    warning = check_overlap(training, evaluation, False, "lists")
    assert "x (trained on as a), y (trained on as b), z (trained on as b)" in warning


def test_paths_are_resolved_once_a_video_and_not_once_a_caption(tmp_path, monkeypatch):
    calls = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: calls.append(path) or realpath(path))
    training, evaluation = samples(tmp_path, *["a", "b", "c"] * 1000), samples(tmp_path, *["c", "d"] * 1000)
    assert list(shared_videos(training, evaluation)) == ["c"]
    assert len(calls) <= 5


def test_a_shared_video_is_a_warning_and_in_official_splits_an_error(tmp_path):
    names = [f"video{i}" for i in range(13)]
    training = samples(tmp_path, *names, "own")
    for official in (False, True):
        assert check_overlap(training, samples(tmp_path, "other"), official, "MSR-VTT") is None
    warning = check_overlap(training, samples(tmp_path, *names), False, "MSR-VTT")
    assert "MSR-VTT: 13 evaluation videos are" in warning
    assert f"{', '.join(names[:10])} and 3 more" in warning and "video10" not in warning
    with pytest.raises(AnnotationError) as caught:
        check_overlap(training, samples(tmp_path, *names), True, "MSR-VTT")
    assert "13 evaluation videos are" in str(caught.value) and ", ".join(names[:10]) in str(caught.value)
    assert "download" in str(caught.value)
    one = check_overlap(training, samples(tmp_path, "other", "video3"), False, "MSR-VTT")
    assert "1 evaluation video is also trained on: video3." in one
