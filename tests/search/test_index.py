"""An index is brought up to date, stays whole however its writer ends, and says what is wrong."""

import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import UserError
from dataloaders.bad_videos import SKIPPED_COLUMNS
from helpers.flags import path_of
from helpers.launching import wait_for
from helpers.paths import ROOT
from helpers.runs import run as train
from helpers.search.index import SETTINGS, add, made_part, make_index, make_videos, vector
from helpers.tiny import make_tiny_clip, save_clip_folder
from helpers.videos import write_video
from modules.program.build import find_checkpoint
from search import store as store_module
from search.__main__ import main
from search.indexing import update
from search.settings import IndexSettings, ModelSettings
from search.store import DATABASE, Stamp, open_for_writing, read_store

CUT = IndexSettings(window=2.0, stride=1.0)


@pytest.fixture(scope="module")
def model(tiny_run):
    return ModelSettings(
        pretrained_clip_name=str(path_of(tiny_run, "--pretrained_clip_name")), max_frames=4, max_words=12
    )


@pytest.fixture
def folder(tmp_path):
    """Three videos of 4 s, 1 s and 2.6 s, one of them in a folder of its own, and a broken one."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    write_video(folder / "a.mp4", frames=100)
    write_video(folder / "b.mkv", frames=25)
    write_video(folder / "more" / "c.mp4", frames=65)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    return folder


def contents(index_dir):
    """What an index holds of each good video: times and embeddings of its windows, by path."""
    store = read_store(index_dir)
    rows, embeddings = store.rows(), store.embeddings()
    videos = {video.id: video.path for video in store.videos()}
    found = {video.path: [] for video in store.videos() if video.problem is None}
    for row, number, start, end in zip(rows.rows, rows.videos, rows.starts, rows.ends, strict=True):
        found[videos[number]].append((start, end, embeddings[row].tobytes()))
    assert store.problems() == []
    store.close()
    return found


def counts(outcome):
    return outcome.added, outcome.changed, outcome.gone, outcome.same


def test_what_is_new_or_changed_is_done_and_what_is_gone_is_forgotten(folder, model, tmp_path):
    index_dir = tmp_path / "index"
    outcome = update([folder], index_dir, CUT, model, set())
    assert counts(outcome) == (4, 0, 0, 0) and list(outcome.bad) == [str(folder / "broken.mp4")]
    assert "decord" in outcome.bad[str(folder / "broken.mp4")] or "OpenCV" in outcome.bad[str(folder / "broken.mp4")]
    assert outcome.seconds == pytest.approx(7.6)
    first = contents(index_dir)
    lengths = {path.rsplit("/", 1)[1]: len(windows) for path, windows in first.items()}
    assert lengths == {"a.mp4": 3, "b.mkv": 1, "c.mp4": 2}

    idle = update([folder], index_dir, CUT, model, set(), load=None)  # no model is needed
    assert counts(idle) == (0, 0, 0, 4) and idle.bad == outcome.bad

    (folder / "more" / "c.mp4").unlink()
    write_video(folder / "b.mkv", frames=75)
    write_video(folder / "d.mp4", frames=25)
    outcome = update([folder], index_dir, CUT, model, set())
    assert counts(outcome) == (1, 1, 1, 2)
    second = contents(index_dir)
    assert second[str(folder / "a.mp4")] == first[str(folder / "a.mp4")]
    assert len(second[str(folder / "b.mkv")]) == 2 and str(folder / "more" / "c.mp4") not in second
    anew = tmp_path / "anew"
    update([folder], anew, CUT, model, set())
    assert contents(anew) == second  # to the bit


def test_another_folder_is_added_and_one_that_is_not_there_is_not_forgotten(folder, model, tmp_path, monkeypatch):
    index_dir, other = tmp_path / "index", tmp_path / "other"
    make_videos(other, ["x.mp4"])
    for place in (folder, other):
        update([place], index_dir, CUT, model, set())
    assert len(contents(index_dir)) == 4
    away = folder.rename(tmp_path / "away")
    assert update([other], index_dir, CUT, model, set()).gone == 0  # a disk that is not mounted
    folder.mkdir()
    assert update([other], index_dir, CUT, model, set()).gone == 0  # and the place where it is mounted
    listdir = os.listdir
    with monkeypatch.context() as patch:  # a test may run as somebody who may read everything

        def refuse(path="."):
            if Path(path) == folder:
                raise PermissionError(errno.EACCES, "Permission denied")
            return listdir(path)

        patch.setattr(os, "listdir", refuse)
        assert update([other], index_dir, CUT, model, set()).gone == 0  # one that cannot be read
    with pytest.raises(UserError, match="--forget_empty"):
        update([folder], index_dir, CUT, model, set())
    outcome = update([folder], index_dir, IndexSettings(window=2.0, stride=1.0, forget_empty=True), model, set())
    assert outcome.gone == 4 and len(contents(index_dir)) == 1
    shutil.rmtree(folder)
    away.rename(folder)
    assert update([folder], index_dir, CUT, model, set()).added == 4
    with pytest.raises(UserError, match="is not a folder"):
        update([tmp_path / "none"], index_dir, CUT, model, set())


def test_an_index_keeps_its_windows_and_its_model(folder, model, tmp_path, tiny_run):
    index_dir = tmp_path / "index"
    update([folder], index_dir, CUT, model, set())
    with pytest.raises(UserError, match="was made with --window 2"):
        update([folder], index_dir, IndexSettings(window=3.0), model, {"window"})
    assert update([folder], index_dir, IndexSettings(), model, set()).same == 4
    with pytest.raises(UserError, match="was made with --max_frames 4"):
        update([folder], index_dir, CUT, ModelSettings(max_frames=8), set())
    other = save_clip_folder(tmp_path / "clip", make_tiny_clip(1).model)
    write_video(folder / "d.mp4", frames=25)
    with pytest.raises(UserError, match="no longer the one that the index"):
        update([folder], index_dir, CUT, ModelSettings(pretrained_clip_name=str(other)), set())
    assert len(contents(index_dir)) == 3


def test_videos_known_to_be_bad_are_not_read_and_are_read_again_where_asked(folder, model, tmp_path):
    listed = tmp_path / "bad_videos.csv"
    listed.write_text(",".join(SKIPPED_COLUMNS) + f"\n,,,,{folder / 'a.mp4'},looked odd\n")
    settings = IndexSettings(window=2.0, stride=1.0, bad_videos=listed)
    outcome = update([folder], tmp_path / "index", settings, model, set())
    assert outcome.bad[str(folder / "a.mp4")] == "looked odd" and outcome.seconds == pytest.approx(3.6)
    again = IndexSettings(window=2.0, stride=1.0, retry_bad=True)
    outcome = update([folder], tmp_path / "index", again, model, set())
    assert counts(outcome) == (0, 2, 0, 2) and list(outcome.bad) == [str(folder / "broken.mp4")]
    for text in ("no,list\n1,2\n", ",".join(SKIPPED_COLUMNS) + "\n,,\n"):  # another file, and half a list
        listed.write_text(text)
        with pytest.raises(UserError, match="is no list of preprocess"):
            update([folder], tmp_path / "index", settings, model, set())


def test_a_file_is_indexed_once_whatever_links_there_are_and_odd_names_are_bad(folder, model, tmp_path):
    (folder / "link.mp4").symlink_to(folder / "more" / "c.mp4")
    odd = os.fsencode(folder) + b"/\xff.mp4"
    with open(odd, "wb") as file:
        file.write((folder / "b.mkv").read_bytes())
    os.mkdir(os.fsencode(tmp_path) + b"/\xfe")
    with pytest.raises(UserError, match="folder's name is not UTF-8"):
        update([tmp_path / os.fsdecode(b"\xfe")], tmp_path / "index", CUT, model, set())
    outcome = update([folder], tmp_path / "index", CUT, model, set())
    assert outcome.added == 5 and sum("UTF-8" in reason for reason in outcome.bad.values()) == 1
    assert set(contents(tmp_path / "index")) == {str(folder / name) for name in ("a.mp4", "b.mkv", "link.mp4")}


# A writer of an index that is killed where a call to the system says so; the parts are made up.
WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "tests")
from helpers.search.index import SETTINGS, add, made_part
from search import store
limit, index_dir, root = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
calls = 0
def audit(event, arguments):
    global calls
    if event == "open" and str(index_dir) in str(arguments[0]) or event in ("os.truncate", "sqlite3.connect"):
        count()
def count():
    global calls
    calls += 1
    if calls == limit: os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(audit)
fsync = os.fsync
def killing(file): count(); fsync(file); count()
os.fsync = killing
import contextlib
transaction = store.Store._transaction
@contextlib.contextmanager
def counting(self):
    with transaction(self):
        yield
        count()
    count()
store.Store._transaction = counting
with store.open_for_writing(index_dir, SETTINGS) as opened:
    opened.add_folder(str(root))
    known = {video.path for video in opened.videos()}
    for path in sorted(root.glob("*.mp4")):
        if str(path) not in known:
            add(opened, root, path, made_part(path.stem))
            print(path.stem, flush=True)
    opened.remove([str(root / "b.mp4")])
    opened.tidy()
print("calls", calls)
"""


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_a_writer_that_is_killed_anywhere_loses_the_video_in_hand_alone(tmp_path, every):
    root = tmp_path / "videos"
    root.mkdir()
    for name in ("a", "b", "c"):
        (root / f"{name}.mp4").write_bytes(name.encode())

    def write(limit, index_dir):
        words = [sys.executable, "-c", WRITER, str(limit), str(index_dir), str(root)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done

    calls = int(write(0, tmp_path / "whole").stdout.split()[-1])
    expected = contents(tmp_path / "whole")
    assert set(expected) == {str(root / "a.mp4"), str(root / "c.mp4")} and calls > 20
    for limit in range(1, calls + 1, every):
        index_dir = tmp_path / f"killed{limit}"
        printed = write(limit, index_dir).stdout.split()
        if (index_dir / DATABASE).is_file() and (index_dir / DATABASE).stat().st_size:
            there = {path.rsplit("/", 1)[1][0] for path in contents(index_dir)}  # without a new writer
            assert set(printed[:3]) - {"b"} <= there
        assert write(0, index_dir).returncode == 0
        assert contents(index_dir) == expected
        store = read_store(index_dir)
        left = {path for path in index_dir.iterdir() if path.suffix in (".f16", ".bin")}
        assert left == {store.file("embeddings"), store.file("pictures")}  # nothing of the killed one's
        store.close()
        shutil.rmtree(index_dir)


@pytest.mark.slow
def test_the_program_killed_while_it_indexes_goes_on_from_there(folder, model, tmp_path):
    for number in range(12):
        shutil.copy(folder / "a.mp4", folder / f"copy{number:02}.mp4")
    update([folder], tmp_path / "whole", CUT, model, set())
    index_dir = tmp_path / "index"
    words = [sys.executable, "-m", "search", "index", str(folder), "--index_dir", str(index_dir), "--window", "2"]
    words += ["--stride", "1", "--pretrained_clip_name", model.pretrained_clip_name, "--max_frames", "4"]
    words += ["--max_words", "12"]
    for least in (2, 6, 10):
        process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda least=least: number_of_videos(index_dir) >= least, process)
        process.kill()
        process.communicate()
        assert least <= len(contents(index_dir)) <= 15
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "1 bad" in done.stdout, done.stderr  # the broken one
    assert contents(index_dir) == contents(tmp_path / "whole")


def number_of_videos(index_dir):
    try:
        store = read_store(index_dir)
        return sum(video.problem is None for video in store.videos())
    except (UserError, sqlite3.Error):
        return 0


def test_a_reader_keeps_what_it_has_mapped_while_the_files_change(tmp_path):
    root = tmp_path / "videos"
    paths = make_videos(root, ["a.mp4", "b.mp4", "c.mp4"])
    index_dir = make_index(tmp_path / "index", root, paths)
    store = read_store(index_dir)
    before, rows = store.embeddings(), store.rows()
    copied = np.array(before)
    with open_for_writing(index_dir, SETTINGS) as writer:
        writer.remove([str(paths[1]), str(paths[2])])
        add(writer, root, paths[2], made_part("other"))
        np.testing.assert_array_equal(before, copied)  # no row was given to another video
        writer.tidy()
    np.testing.assert_array_equal(before, copied)
    after = store.embeddings()
    assert len(after) == len(store.rows().rows) == 14 < len(rows.rows) == 21
    np.testing.assert_allclose(after[7], vector("other 0"), atol=1e-3)
    assert (index_dir / "pictures-1.bin").stat().st_size == 14 * 4 and store.problems() == []


def test_one_program_at_a_time_writes_and_readers_see_that_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "PATIENCE", 0.1)
    index_dir = make_index(tmp_path / "index", tmp_path, [])
    store = read_store(index_dir)
    assert not store.is_growing()
    with open_for_writing(index_dir, SETTINGS):
        assert store.is_growing()
        assert main(["verify", "--index_dir", str(index_dir)]) == 2  # what it finds would be of two moments
        with pytest.raises(UserError, match="another program is writing"), open_for_writing(index_dir, SETTINGS):
            pass
    assert not store.is_growing()
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.set(window=3)


def test_verify_finds_what_is_not_whole(tmp_path, capsys):
    root = tmp_path / "videos"
    paths = make_videos(root, ["a.mp4", "b.mp4"])
    index_dir = make_index(tmp_path / "index", root, paths)
    flags = ["--index_dir", str(index_dir)]
    assert main(["verify", *flags, "--videos"]) == 0 and "14 windows" in capsys.readouterr().out
    paths[1].unlink()
    assert main(["verify", *flags, "--videos"]) == 1 and "b.mp4 is gone" in capsys.readouterr().out
    vectors = index_dir / "embeddings-0.f16"
    good = vectors.read_bytes()
    vectors.write_bytes(bytes(64) + good[64:])
    assert main(["verify", *flags]) == 1 and "1 rows of embeddings" in capsys.readouterr().out
    vectors.write_bytes(good[:-2])
    assert main(["verify", *flags]) == 1 and "embeddings-0.f16 has" in capsys.readouterr().out
    with pytest.raises(UserError, match="delete"), open_for_writing(index_dir, SETTINGS):
        pass
    vectors.write_bytes(good)
    (index_dir / "pictures-0.bin").write_bytes(bytes(56))
    assert main(["verify", *flags]) == 1 and "14 pictures" in capsys.readouterr().out
    with contextlib.closing(sqlite3.connect(index_dir / DATABASE)) as connection:
        connection.execute("DROP TABLE windows")
    assert main(["verify", *flags]) == 2 and "no such table: windows" in capsys.readouterr().err
    (index_dir / DATABASE).write_bytes(b"no database" * 100)
    assert main(["verify", *flags]) == 2 and "is no index" in capsys.readouterr().err
    assert main(["verify", "--index_dir", str(tmp_path / "none")]) == 2 and "make one" in capsys.readouterr().err


def test_the_commands_find_a_moment_and_say_when_nothing_stands_out(folder, model, tmp_path, capsys):
    flags = ["--index_dir", str(tmp_path / "index")]
    made = ["--pretrained_clip_name", model.pretrained_clip_name, "--max_frames", "4", "--max_words", "12"]
    made += ["--window", "2", "--stride", "1"]
    assert main(["index", str(folder), *flags, *made]) == 1
    printed = capsys.readouterr().out
    assert "4 new, 0 changed, 0 gone, 0 as before; 1 bad" in printed and f"bad: {folder / 'broken.mp4'}" in printed
    assert main(["info", *flags]) == 0
    printed = capsys.readouterr().out
    assert "videos: 3, 8 s" in printed and "2 s every 1 s" in printed and "method zero_shot" in printed
    assert main(["search", "a red circle", *flags, "--threshold", "-100", "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["score", "video", "from–to"] and len(lines) == 3
    assert main(["search", "a red circle", *flags, "--threshold", "100"]) == 1
    assert "nothing stands out" in capsys.readouterr().out
    assert main(["search", "--like", "c.mp4@1.9", *flags, "--json", "--folder", "videos/more"]) == 1
    assert '"moments": []' in capsys.readouterr().out  # but itself there is nothing
    for place, reason in (
        ("c.mp4", "give a video and a time"),
        ("e.mp4@1", "no video"),
        ("broken.mp4@1", "a bad one"),
        ("c.mp4@9", "has 2.6 s"),
    ):
        assert main(["search", "--like", place, *flags]) == 2 and reason in capsys.readouterr().err
    assert main(["search", "a", *flags, "--folder", "elsewhere"]) == 1
    assert "no video fits the folder" in capsys.readouterr().out
    assert main(["search", *flags]) == 2 and "give a text" in capsys.readouterr().err
    assert main(["index", str(folder), *flags, "--window", "1", "--stride", "2"]) == 2
    assert "--stride 2 leaves gaps" in capsys.readouterr().err


def test_a_name_begins_with_the_outermost_folder_whichever_was_indexed_first(folder, model, tmp_path):
    index_dir = tmp_path / "index"
    update([folder / "more"], index_dir, CUT, model, set())
    names = []
    for place in (folder, folder / "more"):
        update([place], index_dir, CUT, model, set())
        store = read_store(index_dir)
        names.append({video.name for video in store.videos()})
        store.close()
    assert names[0] == names[1] == {f"videos/{name}" for name in ("a.mp4", "b.mkv", "broken.mp4", "more/c.mp4")}


def test_a_list_of_bad_videos_that_names_others_says_so(folder, model, tmp_path, caplog):
    listed = tmp_path / "bad_videos.csv"
    listed.write_text(",".join(SKIPPED_COLUMNS) + "\n,,,,elsewhere/a.mp4,looked odd\n")
    settings = IndexSettings(window=2.0, stride=1.0, bad_videos=listed)
    update([folder / "more"], tmp_path / "index", settings, model, set())
    assert "1 of 1 videos of --bad_videos" in caplog.text and "elsewhere/a.mp4" in caplog.text


def test_a_run_that_has_changed_is_refused_also_where_nothing_is_to_be_done(tiny_run, folder, tmp_path):
    run = tmp_path / "run"
    flags = ["--do_train", "--method", "vpt", "--epochs", "1", "--batch_size", "6", "--lr", "0.01"]
    assert train(tiny_run, tmp_path / "trained", *flags) == 0
    shutil.copytree(tmp_path / "trained", run)
    index_dir, model = tmp_path / "index", ModelSettings(run=run)
    update([folder / "more"], index_dir, CUT, model, set())
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    name = next(iter(checkpoint["model"]))
    checkpoint["model"][name] = checkpoint["model"][name] + 1
    torch.save(checkpoint, find_checkpoint(run))
    with pytest.raises(UserError, match="no longer the one that the index"):
        update([folder / "more"], index_dir, CUT, model, set(), load=None)
    run.rename(tmp_path / "away")  # which keeps nobody from having what is gone forgotten
    assert counts(update([folder / "more"], index_dir, CUT, ModelSettings(), set(), load=None)) == (0, 0, 0, 1)


def test_what_is_read_within_is_of_one_moment(tmp_path):
    root = tmp_path / "videos"
    paths = make_videos(root, ["a.mp4", "b.mp4"])
    index_dir = make_index(tmp_path / "index", root, paths)

    def write():
        with open_for_writing(index_dir, SETTINGS) as writer:
            began.set()
            writer.remove([str(paths[0])])
            writer.tidy()

    began = threading.Event()
    store = read_store(index_dir)
    with futures.ThreadPoolExecutor(1) as pool:
        with store.reading():
            rows = store.rows()
            writing = pool.submit(write)
            assert began.wait(timeout=30)
            with pytest.raises(futures.TimeoutError):  # it waits
                writing.result(timeout=0.3)
            assert len(store.embeddings()) == len(rows.rows) == 14 and store.file("pictures").exists()
        writing.result(timeout=60)
    assert len(store.embeddings()) == len(store.rows().rows) == 7 and store.problems() == []


def test_a_stamp_tells_another_file_of_the_same_length(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    before = Stamp.of(path.stat())
    path.write_bytes(b"2")
    os.utime(path, ns=(0, before.mtime_ns + 1))
    assert Stamp.of(path.stat()) != before
