"""Finding a video's file by its name in a list: at any depth, in folders and packs, and never outside of them."""

import os
import random
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from dataloaders import video_files
from dataloaders.video.pack_index import PackedVideo, PackIndex, PackSettings
from dataloaders.video_files import VideoFiles, list_videos


def make_files(folder, *names):
    """Empty files: only names matter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def make_pack(folder, *names):
    """An index of videos with such paths, in an order of its own; there are no frames."""
    one = np.ones(1, dtype=np.int64)
    packed = [PackedVideo(name, 1, 1, "frames-00000.tar", 2, 2, one, one, one.astype(np.uint32), "") for name in names]
    random.Random(0).shuffle(packed)
    return PackIndex(folder, PackSettings(), {video.video: video for video in packed})


@pytest.fixture(params=["folder", "pack"])
def make(request, tmp_path):
    """`make(*names)`: a folder or a pack of videos, and its path."""
    if request.param == "folder":
        return lambda *names: (make_files(tmp_path / "videos", *names), tmp_path / "videos")
    return lambda *names: (make_pack(tmp_path / "videos", *names), tmp_path / "videos")


def found_in(videos, root, *names, **rules):
    """What each name means, as paths from the folder."""
    files = VideoFiles(videos, **rules)
    return [[path.relative_to(root).as_posix() for path in files.find(name)] for name in names]


# Names of a list without class folders


def test_a_name_is_enough_at_any_depth(make):
    names = ["a.mp4", "one/b.AVI", "one/two/c.mkv", "one/two/three/d [x] *.webm", "one.mp4/e.f.mp4"]
    videos, root = make(*names)
    stems = [PurePosixPath(name).stem for name in names]
    assert found_in(videos, root, *stems) == [[name] for name in names]
    assert found_in(videos, root, *(PurePosixPath(name).name for name in names)) == [[name] for name in names]
    assert found_in(videos, root, *names) == [[name] for name in names]
    assert found_in(videos, root, *(name.rpartition(".")[0] for name in names)) == [[name] for name in names]
    assert found_in(videos, root, "two/c", "two/three/d [x] *", "wo/c", "two", "e", "e.f.avi", "d [x] ?") == [
        ["one/two/c.mkv"],
        ["one/two/three/d [x] *.webm"],
        *[[]] * 5,
    ]


def test_a_path_tells_files_of_one_name_apart(make):
    videos, root = make("x/clip.mp4", "y/clip.mp4", "y/z/clip.avi", "y/z/clip.mp4")
    assert found_in(videos, root, "clip") == [["x/clip.mp4", "y/clip.mp4", "y/z/clip.avi", "y/z/clip.mp4"]]
    assert found_in(videos, root, "clip.avi", "x/clip", "y/clip.mp4", "y/z/clip.mp4", "z/clip.avi") == [
        ["y/z/clip.avi"],
        ["x/clip.mp4"],
        ["y/clip.mp4"],
        ["y/z/clip.mp4"],
        ["y/z/clip.avi"],
    ]
    assert found_in(videos, root, "z/clip", "y/z/clip") == [["y/z/clip.avi", "y/z/clip.mp4"]] * 2


def test_the_path_from_the_folder_goes_before_the_end_of_another(make):
    videos, root = make("clip.mp4", "x/clip.mp4", "y/x/clip.mp4", "a.mp4", "a.mp4.avi")
    assert found_in(videos, root, "clip", "clip.mp4", "x/clip", "y/x/clip") == [
        ["clip.mp4"],
        ["clip.mp4"],
        ["x/clip.mp4"],
        ["y/x/clip.mp4"],
    ]
    # So that either of two files has a name that means no other.
    assert found_in(videos, root, "a", "a.mp4", "a.mp4.avi") == [["a.mp4"], ["a.mp4.avi"], ["a.mp4.avi"]]


def test_every_file_has_a_name_that_means_it_alone(make):
    names = [f"{folder}{stem}{suffix}" for folder in ("", "a/", "b/a/") for stem in "ab" for suffix in (".mp4", ".avi")]
    videos, root = make(*names)
    assert found_in(videos, root, *names) == [[name] for name in names]


def test_case_matters_unless_no_file_has_the_exact_name(make):
    videos, root = make("A/Clip.mp4", "b/OTHER.mp4", "b/other.mp4")
    if root.is_dir() and len(os.listdir(root / "b")) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    assert found_in(videos, root, "Clip", "clip", "a/Clip", "other") == [["A/Clip.mp4"], [], [], ["b/other.mp4"]]
    assert found_in(videos, root, "clip", "a/CLIP", "other", "Other", ignore_case=True) == [
        ["A/Clip.mp4"],
        ["A/Clip.mp4"],
        ["b/other.mp4"],
        ["b/OTHER.mp4", "b/other.mp4"],
    ]


@pytest.mark.parametrize("classes", [None, ["outside", "a"]])
def test_no_name_leads_out(make, tmp_path, classes):
    make_files(tmp_path, "x.mp4", "outside/x.mp4", "videos_2/x.mp4")
    videos, root = make("outside/y.mp4", "a/b/y.mp4", "c.mp4")
    names = ["../x", "../outside/x", f"{tmp_path}/x", f"{tmp_path}/videos/c", "a/../../x", "a/../c", "./c", "/c", "//c"]
    names += ["..\\x", "..", ".", "", "/", "a/b", "a//b/y", "a/b/", "a/./b/y", "c/.", "outside/../c", "../videos/c"]
    assert found_in(videos, root, *names, classes=classes) == [[]] * len(names)


# Names of a list with class folders

CLASSES = {"classes": ["run", "HandstandPushups"], "ignore_case": True}


def test_a_class_folder_may_lie_anywhere(make):
    videos, root = make("part 1/run/0.avi", "part 2/HandstandPushups/deep/0.avi", "part 2/handstandpushups/1.avi")
    assert found_in(videos, root, "run/0", "HandstandPushups/1", "HandStandPushups/1", **CLASSES) == [
        ["part 1/run/0.avi"],
        ["part 2/handstandpushups/1.avi"],
        ["part 2/handstandpushups/1.avi"],
    ]


def test_a_video_may_lie_outside_of_class_folders_where_its_name_is_unique(make):
    videos, root = make("part 1/a.avi", "part 2/b.avi", "b/c.avi", "part 1/d.avi", "part 2/d.avi")
    assert found_in(videos, root, "run/a", "run/B", "HandstandPushups/c", "run/d", **CLASSES) == [
        ["part 1/a.avi"],
        ["part 2/b.avi"],
        ["b/c.avi"],
        ["part 1/d.avi", "part 2/d.avi"],
    ]


def test_a_file_of_another_class_is_another_video(make):
    videos, root = make("run/0.avi", "x/run/y/1.avi", "z/HandstandPushups/2.avi")
    assert found_in(videos, root, "HandstandPushups/0", "HandstandPushups/1", "run/2", **CLASSES) == [[]] * 3
    assert found_in(videos, root, "run/0", "run/1", "HandstandPushups/2", **CLASSES) == [
        ["run/0.avi"],
        ["x/run/y/1.avi"],
        ["z/HandstandPushups/2.avi"],
    ]


def test_a_class_folder_goes_before_what_lies_elsewhere(make):
    videos, root = make("run/0.avi", "old/run/0.avi", "old/0.avi", "part/run/1.avi", "old/1.avi", "run/2.avi", "2.avi")
    assert found_in(videos, root, "run/0", "run/1", **CLASSES) == [["run/0.avi"], ["part/run/1.avi"]]
    # Directly in the folder is where a dataset without class folders has it.
    assert found_in(videos, root, "run/2", **CLASSES) == [["2.avi", "run/2.avi"]]


# What is listed


def test_hidden_entries_are_left_out(make):
    videos, root = make("._a.mp4", ".trash/b.mp4", "x/.thumbs/c.mp4", "x/d.mp4")
    names = ["._a", "a", "b", ".trash/b", "c", ".thumbs/c", "d"]
    assert found_in(videos, root, *names) == [*[[]] * 6, ["x/d.mp4"]]


def test_links_to_files_and_folders_are_followed(tmp_path):
    outside = make_files(tmp_path / "outside", "a.mp4", "deep/b.mp4")
    root = make_files(tmp_path / "videos", "c.mp4", "x/d.mp4")
    (root / "link").symlink_to(outside)
    (root / "e.mp4").symlink_to(outside / "a.mp4")
    (root / "gone.mp4").symlink_to("nowhere")
    (root / "self.mp4").symlink_to("self.mp4")
    (root / "folder.mp4").mkdir()
    (root / "run").symlink_to("x")  # a name of a class for a folder that has another
    names = ["a", "b", "c", "e", "gone", "self", "folder", "run/d", "x/d"]
    assert found_in(root, root, *names) == [
        ["link/a.mp4"],
        ["link/deep/b.mp4"],
        ["c.mp4"],
        ["e.mp4"],
        [],
        [],
        [],
        ["run/d.mp4"],
        ["x/d.mp4"],
    ]


def test_one_file_under_several_names_is_one_video(tmp_path):
    root = make_files(tmp_path / "videos", "part/clip.mp4", "other/clip.mp4")
    (root / "all").symlink_to("part")
    (root / "part" / "again").mkdir()
    (root / "part" / "again" / "clip.mp4").symlink_to("../clip.mp4")
    assert found_in(root, root, "clip") == [["all/clip.mp4", "other/clip.mp4"]]  # of five paths
    shutil.rmtree(root / "other")
    assert found_in(root, root, "clip", "part/clip", "again/clip") == [
        ["all/clip.mp4"],
        ["part/clip.mp4"],
        ["all/again/clip.mp4"],
    ]


def test_links_in_circles_have_an_end(tmp_path, monkeypatch):
    folders = [f"f{number}" for number in range(12)]
    root = make_files(tmp_path / "videos", *(f"{folder}/deep/{folder}.mp4" for folder in folders))
    for folder in folders:
        for other in folders:  # 12! ways through them
            (root / folder / f"to_{other}").symlink_to(root / other)
        (root / folder / "deep" / "up").symlink_to(root)
        (root / folder / "deep" / "out").symlink_to(tmp_path)
    (tmp_path / "in").symlink_to(root)
    (root / "own").symlink_to(".")
    scans = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scandir(path))
    assert found_in(root, root, *folders) == [[f"{folder}/deep/{folder}.mp4"] for folder in folders] and scans
    assert len(scans) < 1000
    # Where the folder itself is a link, too.
    assert VideoFiles(tmp_path / "in").find("f3") == [tmp_path / "in" / "f3" / "deep" / "f3.mp4"]


def test_a_folder_is_listed_once_and_files_cost_no_path(tmp_path, monkeypatch):
    root = make_files(tmp_path / "videos", *(f"{k % 7}/{k}.mp4" for k in range(500)))
    scans, stats, paths = [], [], []
    scandir, stat = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: scans.append(path) or scandir(path))
    monkeypatch.setattr(os, "stat", lambda *args, **kwargs: stats.append(args) or stat(*args, **kwargs))
    monkeypatch.setattr(video_files, "Path", lambda path: paths.append(path) or Path(path))
    files = VideoFiles(root)
    assert [path.name for path in files.find("17")] == ["17.mp4"]
    assert len(scans) == len(set(scans)) == 8
    assert len(paths) == 1 and len(stats) < 50


def test_the_order_on_the_disk_does_not_matter(make, monkeypatch):
    names = [f"{folder}/{k}.mp4" for folder in "abc" for k in range(5)]
    videos, root = make(*names)
    before = found_in(videos, root, *map(str, range(5)))
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return self.entries

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert found_in(videos, root, *map(str, range(5))) == before == [[f"{f}/{k}.mp4" for f in "abc"] for k in range(5)]


# Folders without videos


def test_what_is_there_in_place_of_videos_is_counted(tmp_path):
    root = make_files(tmp_path / "videos", "MSRVTT.zip", "a/notes.txt", "a/b/more.TXT", "a/README", "a/.hid.mp4")
    make_files(root, ".trash/video0.mp4", ".DS_Store")
    (root / "a" / "video1.mp4").mkdir()
    (root / "a" / "video2.mp4").symlink_to("nowhere")
    (problem,) = VideoFiles(root).problems
    assert problem.startswith(f"the video folder {root} holds no videos (.3gp, .avi, ")
    assert problem.endswith(
        "found: 4 files with other suffixes (.txt, none, .zip), 2 folders or broken links named so, "
        "2 entries with a leading dot, not searched"
    )
    (tmp_path / "empty").mkdir()
    assert VideoFiles(tmp_path / "empty").problems[0].endswith("found: nothing")
    make_files(root, "a/b/video.mp4")
    assert VideoFiles(root).problems == []


def test_a_folder_that_is_none_is_said(tmp_path):
    assert VideoFiles(tmp_path / "gone").problems == [f"the video folder {tmp_path / 'gone'} does not exist"]
    make_files(tmp_path, "file")
    assert VideoFiles(tmp_path / "file").problems == [
        f"the video folder {tmp_path / 'file'} cannot be read: Not a directory"
    ]


@pytest.fixture
def forbidden(tmp_path, monkeypatch):
    """A folder of videos with one that cannot be listed; to root, all can be."""
    root = make_files(tmp_path / "videos", "a.mp4", "lost+found/b.mp4")
    scandir = os.scandir

    def refuse(path):
        if os.path.basename(os.path.normpath(path)) == "lost+found":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    return root


def test_a_folder_that_cannot_be_read_matters_where_a_video_is_missing(forbidden):
    files = VideoFiles(forbidden)
    assert list(list_videos(forbidden).unread) == ["lost+found"]
    located = files.locate({"a": "line 1"}, "training", "list", allow_missing=False)
    assert located.paths == {"a": forbidden / "a.mp4"} and not located.problems and not files.problems
    unread = f"the folder of videos {forbidden / 'lost+found'} cannot be read: Permission denied"
    for allowed in (False, True):
        located = files.locate({"a": "line 1", "b": "line 2"}, "training", "list", allowed)
        missing = [] if allowed else [f"line 2: b: no video file in {forbidden}"]
        assert located.problems == [unread, *missing]
        assert "make that readable" in " ".join(located.remedies) and "--" not in " ".join(located.remedies)


# What helps


def remedy_of(videos, listed, list_name, allowed=False, **rules):
    located = VideoFiles(videos, **rules).locate(dict.fromkeys(listed, "line 1"), list_name, "list", allowed)
    assert bool(located.remedies) <= bool(located.problems)
    return " ".join(located.remedies)


FLAGS = {"training": "--allow_missing", "evaluation": "--on_bad_eval_video drop"}


@pytest.mark.parametrize("list_name", FLAGS)
def test_the_flag_that_helps_is_that_of_the_list(make, list_name):
    videos, _ = make("a.mp4", "x/b.mp4", "y/b.mp4")
    other = next(flag for name, flag in FLAGS.items() if name != list_name)
    remedy = remedy_of(videos, ["a", "gone"], list_name)
    assert FLAGS[list_name] in remedy and other not in remedy
    assert ("failed_videos.csv" in remedy) == isinstance(videos, PackIndex)
    # It is given; or it would leave nothing; or nothing is missing.
    for listed, allowed in ((["a", "gone"], True), (["gone"], False), (["gone"], True), (["a"], False), (["b"], False)):
        remedy = remedy_of(videos, listed, list_name, allowed)
        assert FLAGS[list_name] not in remedy and other not in remedy


def test_how_to_name_one_of_several_files_is_said_where_it_can_be_done(make):
    videos, root = make("a.mp4", "x/b.mp4", "y/b.mp4")
    assert f"the list may give the path from {root}" in remedy_of(videos, ["a", "b"], "training")
    in_class = remedy_of(videos, ["c/a", "c/b"], "training", classes=["c"])
    assert "the list may" not in in_class
    assert ("index.jsonl" if isinstance(videos, PackIndex) else "rename") in in_class
    assert "more than one" not in remedy_of(videos, ["a", "gone"], "training")


def test_files_of_one_name_are_a_problem_of_the_lists_that_ask_for_them(make):
    videos, root = make("test.avi", "test.mp4", "a.mp4")
    files = VideoFiles(videos)
    assert files.problems == []
    assert files.locate({"a": "line 2"}, "evaluation", "list", False).problems == []
    located = files.locate({"a": "line 2", "test": "line 3"}, "evaluation", "list", True)
    assert located.problems == [f"line 3: test: more than one video file in {root}: test.avi, test.mp4"]
    assert located.paths == {"a": root / "a.mp4"} and located.missing == []
    assert files.locate({"test.avi": "line 3"}, "evaluation", "list", False).paths == {"test.avi": root / "test.avi"}
