"""Parts of the list of videos, embedded on a cluster, give the index that one machine makes, whatever happens."""

import contextlib
import dataclasses
import importlib.util
import os
import random
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from common.errors import UserError
from helpers.flags import path_of
from helpers.launching import ENVIRONMENT, run_to_end, start, wait_for
from helpers.paths import ROOT
from helpers.search.index import SETTINGS, made_part, make_index
from helpers.videos import write_video
from search.cluster.job import HOPELESS, TRIES, Lost, merged
from search.cluster.on_ray import START_TRIES, Embedded, RayWorkers, Recipe, Refused, Started, room_on
from search.cluster.parts import PARTS, Listed, PartFiles, cut
from search.indexing import update
from search.settings import IndexSettings, ModelSettings
from search.store import DATABASE, Stamp, open_for_writing, read_store

MEGA = 10**6
BAD = "it is no video"
RECIPE = Recipe(
    SETTINGS | {"fingerprint": "a", "max_frames": "4"}, ModelSettings(), IndexSettings(), Path("i"), Path(), 2, 0.0
)


def listed(name, size=MEGA, changed=1):
    return Listed(f"/videos/{name}.mp4", Stamp(size, changed))


LIST = [listed(f"{number:02}") for number in range(12)]


def name_of(video):
    return Path(video.path).stem


def result_of(video):
    """What embedding a video gives: its windows, as many as its name says; every fifth is bad."""
    number = int(name_of(video)[:2])
    if number % 5 == 4:
        return BAD
    part = made_part(name_of(video), picture=b"\xff\xd8" + name_of(video).encode() + b"\xff\xd9")
    count = 1 + number % 3
    return dataclasses.replace(
        part, bounds=part.bounds[:count], embeddings=part.embeddings[:count], pictures=part.pictures[:count]
    )


class Interrupted(Exception):
    """What ends a run."""


class MadeUpWorkers:
    """Workers without Ray: so many at a time, of which the one that began last is ready first.

    Attributes:
        embedded: how often each video was. lost: how often each part, by its videos' names, took its worker along.
        parts: in the order in which they were finished.
    """

    def __init__(self, count=3, poison=(), ends_after=None):
        """poison: names of videos that take their worker along. ends_after: parts that come before the run ends."""
        self.count, self.poison, self.ends_after = count, poison, ends_after
        self.embedded, self.lost, self.parts = Counter(), Counter(), []
        self._busy = []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def grow(self, wanted):
        pass

    def free(self):
        return len(self._busy) < self.count

    def give(self, part):
        assert self.free()
        self._busy.append(part)

    def news(self, timeout):
        if timeout == 0.0 or not self._busy:
            return []
        if self.ends_after == len(self.parts):
            raise Interrupted
        part = self._busy.pop()
        if any(name_of(video) in self.poison for video in part.videos):
            self.lost[tuple(map(name_of, part.videos))] += 1
            return [(part, Lost("its worker died"))]
        self.parts.append(part)
        self.embedded.update(part.videos)
        return [(part, [result_of(video) for video in part.videos])]


def run(index_dir, videos, workers, megabytes=2.0, retry_bad=False, takes=None):
    """Bring an index up to date with a list, as `update` does; it may be broken off before video `takes` is in it."""
    files = PartFiles(index_dir, RECIPE.identity())
    with open_for_writing(index_dir, SETTINGS) as store:
        known = {video.path for video in store.videos()}
        todo = [video for video in videos if video.path not in known]
        with contextlib.closing(merged(todo, files, megabytes, retry_bad, lambda: workers)) as results:
            for place, (video, result) in enumerate(zip(todo, results, strict=True)):
                if place == takes:
                    raise Interrupted
                store.add(video.path, name_of(video), video.stamp, result)
    return workers


def broken_off(index_dir, videos, workers, **options):
    with pytest.raises(Interrupted):
        run(index_dir, videos, workers, **options)
    return workers


def one_machine(index_dir, videos):
    with open_for_writing(index_dir, SETTINGS) as store:
        for video in videos:
            store.add(video.path, name_of(video), video.stamp, result_of(video))
    return index_dir


def bits(index_dir):
    """All that an index is: its tables and the bytes of its files."""
    store = read_store(index_dir)
    assert store.problems() == []
    rows, picture_bytes = store.ends()
    files = store.file("embeddings").read_bytes(), store.file("pictures").read_bytes()
    assert [len(data) for data in files] == [rows * store.width * 2, picture_bytes]
    store.close()
    with contextlib.closing(sqlite3.connect(index_dir / DATABASE)) as connection:
        tables = {
            name: connection.execute(f"SELECT * FROM {name}").fetchall()
            for name in ("videos", "windows", "folders", "settings")
        }
    # the number of transactions, which is another where a run was broken off, is nothing of the index's content
    tables["settings"] = [row for row in tables["settings"] if row[0] != "change"]
    return files, tables


def test_a_part_takes_the_next_videos_as_long_as_they_fit():
    draw = random.Random(1)
    videos = [listed(f"{number}", draw.randrange(1, 3 * MEGA)) for number in range(200)]
    parts = [part.videos for part in cut(videos, 4.0)]
    assert [video for part in parts for video in part] == videos
    sizes = [sum(video.stamp.size for video in part) for part in parts]
    assert max(sizes) <= 4 * MEGA
    for size, following in zip(sizes, parts[1:], strict=False):
        assert size + following[0].stamp.size > 4 * MEGA
    assert [len(part.videos) for part in cut(videos[:3], 1e-6)] == [1, 1, 1]
    assert cut([], 1.0) == []


def test_a_finished_part_is_read_as_it_was_written_and_only_where_all_is_the_same(tmp_path):
    files = PartFiles(tmp_path, RECIPE.identity())
    (part,) = cut(LIST[:6], 100.0)
    results = [result_of(video) for video in part.videos]
    files.write(part, results)
    ((found, failures),) = files.finished()
    assert found.videos == part.videos and failures == {LIST[4].path: BAD}
    read = files.read(found)
    assert list(read) == list(part.videos) and read[LIST[4]] == BAD
    for video, result in zip(part.videos, results, strict=True):
        if result != BAD:
            again = read[video]
            assert (again.seconds, list(again.bounds)) == (result.seconds, list(result.bounds))
            assert list(again.pictures) == list(result.pictures)
            np.testing.assert_array_equal(again.embeddings, result.embeddings.astype(np.float16))

    def others():
        for name, value in (("window", "3.0"), ("stride", "2.0"), ("fingerprint", "b"), ("max_frames", "8")):
            yield dataclasses.replace(RECIPE, recorded=RECIPE.recorded | {name: value})
        yield dataclasses.replace(RECIPE, settings=IndexSettings(batch_size=8))
        yield dataclasses.replace(RECIPE, settings=IndexSettings(video_time_limit=8.0))
        yield dataclasses.replace(RECIPE, model=ModelSettings(precision="bf16"))
        yield dataclasses.replace(RECIPE, threads=1)
        yield dataclasses.replace(RECIPE, gpus=0.5)

    assert [list(PartFiles(tmp_path, other.identity()).finished()) for other in others()] == [[]] * 9
    for field in ("ray", "ray_part", "ray_workers", "retry_bad"):  # which say who does it, not what is done
        same = dataclasses.replace(RECIPE, settings=dataclasses.replace(RECIPE.settings, **{field: 1}))
        assert len(list(PartFiles(tmp_path, same.identity()).finished())) == 1
    (failures_file,) = (tmp_path / PARTS).glob("*.failures.json")
    record = failures_file.read_text()
    failures_file.write_text(record.replace('"/videos/00.mp4"', '"/videos/99.mp4"'))  # no longer what its name says
    assert list(files.finished()) == []
    failures_file.unlink()  # the worker's machine went down between the two files
    assert list(files.finished()) == [] and len(list((tmp_path / PARTS).iterdir())) == 1
    failures_file.write_text(record)
    (data,) = (tmp_path / PARTS).glob("*.npz")
    data.write_bytes(data.read_bytes()[:-100])
    ((found, _),) = files.finished()
    with pytest.raises(UserError, match="is not whole"):
        files.read(found)
    files.remove(found)
    assert list((tmp_path / PARTS).iterdir()) == []


@pytest.mark.parametrize("megabytes", [0.5, 2.0, 5.0, 100.0])
def test_the_merged_index_is_that_of_one_machine_in_whatever_order_parts_are_finished(tmp_path, megabytes):
    workers = run(tmp_path / "merged", LIST, MadeUpWorkers(), megabytes)
    in_order = [part.videos[0] for part in workers.parts] == sorted(part.videos[0] for part in workers.parts)
    assert in_order == (megabytes == 100.0)
    assert bits(tmp_path / "merged") == bits(one_machine(tmp_path / "one", LIST))
    assert set(workers.embedded.values()) == {1} and len(workers.embedded) == len(LIST)
    assert not list((tmp_path / "merged" / PARTS).iterdir())


def test_a_run_that_was_broken_off_goes_on_and_nothing_is_embedded_twice(tmp_path):
    index_dir = tmp_path / "merged"
    first = broken_off(index_dir, LIST, MadeUpWorkers(ends_after=2))  # with a part ready and those before it not
    assert len(first.parts) == 2 and not read_store(index_dir).videos()
    second = broken_off(index_dir, LIST, MadeUpWorkers(count=1), takes=3)  # in the middle of a part
    assert len(read_store(index_dir).videos()) == 3
    third = run(index_dir, LIST, MadeUpWorkers(), megabytes=3.0)  # other parts
    assert first.embedded + second.embedded + third.embedded == Counter(LIST)
    assert third.embedded and bits(index_dir) == bits(one_machine(tmp_path / "one", LIST))
    assert not list((index_dir / PARTS).iterdir())


def test_of_finished_parts_what_is_still_as_it_was_is_taken(tmp_path):
    before = broken_off(tmp_path, LIST, MadeUpWorkers(count=6, ends_after=5))
    changed = listed("07", changed=2)
    videos = [listed("00a"), *LIST[:7], changed, *LIST[8:11], listed("10a")]
    after = run(tmp_path, videos, MadeUpWorkers())
    assert before.embedded == Counter(LIST[2:])
    assert after.embedded == Counter([listed("00a"), *LIST[:2], changed, listed("10a")])
    assert {video.path: video.stamp for video in read_store(tmp_path).videos()} == dict(videos)


def test_what_a_finished_part_has_for_bad_is_tried_again_where_asked(tmp_path):
    for retry_bad, again in ((False, set()), (True, {LIST[4], LIST[9]})):
        index_dir = tmp_path / str(retry_bad)
        broken_off(index_dir, LIST, MadeUpWorkers(count=6, ends_after=5))
        workers = run(index_dir, LIST, MadeUpWorkers(), retry_bad=retry_bad)
        assert set(workers.embedded) == {*LIST[:2], *again}
        assert bits(index_dir) == bits(one_machine(tmp_path / f"one {retry_bad}", LIST))


def test_a_video_that_takes_its_workers_along_is_bad_and_no_other_one_is(tmp_path, caplog):
    workers = run(tmp_path, LIST, MadeUpWorkers(poison={"05"}), megabytes=3.0)
    assert workers.lost == {("03", "04", "05"): TRIES, ("05",): TRIES}
    assert workers.embedded == Counter(set(LIST) - {LIST[5]})
    problems = {video.path: video.problem for video in read_store(tmp_path).videos()}
    assert problems.pop(LIST[5].path) == f"its worker died, {TRIES} times"
    assert problems == {video.path: BAD if result_of(video) == BAD else None for video in LIST if video != LIST[5]}
    assert "is done again, because its worker died" in caplog.text and "video by video" in caplog.text


def test_where_every_part_fails_the_run_ends_and_says_why(tmp_path):
    every = [listed(f"{number:02}") for number in range(100)]
    workers = MadeUpWorkers(poison={name_of(video) for video in every})
    with pytest.raises(UserError, match="none was embedded; the last: its worker died"):
        run(tmp_path, every, workers, megabytes=10.0)
    assert sum(workers.lost.values()) <= TRIES * (HOPELESS + workers.count)
    assert read_store(tmp_path).videos() == []


def test_without_ray_the_command_says_how_to_get_it_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "videos").mkdir()
    with pytest.raises(UserError, match=r"pip install -r requirements-scale\.txt"):
        update([tmp_path / "videos"], tmp_path / "index", IndexSettings(ray="auto"), ModelSettings(), set())
    assert not (tmp_path / "index").exists() and (ROOT / "requirements-scale.txt").is_file()
    assert IndexSettings(ray_cpus=1).problems() and not IndexSettings(ray="auto", ray_cpus=1).problems()


def test_finished_parts_that_nothing_needs_any_more_are_removed(tmp_path):
    paths = []
    for name in ("videos/a.mp4", "more/b.mp4", "other/c.mp4"):
        paths.append(tmp_path / name)
        paths[-1].parent.mkdir()
        paths[-1].write_bytes(name.encode())
    root, index_dir = tmp_path / "videos", tmp_path / "index"
    make_index(index_dir, tmp_path, paths[:2])
    there = [Listed(str(path), Stamp.of(path.stat())) for path in paths]
    folder = index_dir / PARTS

    def update_on_one_machine():  # which has nothing to do
        settings = IndexSettings(window=2.0, stride=1.0)
        assert update([root], index_dir, settings, ModelSettings(), set(), load=None).same == 1

    files = PartFiles(index_dir, RECIPE.identity())
    for part in cut([*there, listed("gone")], 1e-9):
        files.write(part, [BAD])
    (folder / "0123.npz").write_bytes(b"of a part whose second file was not written")
    update_on_one_machine()
    ((kept, _),) = files.finished()  # of a video that is not in the index, in a folder that was not given
    assert kept.videos == (there[2],) and len(list(folder.iterdir())) == 2
    paths[2].unlink()
    update_on_one_machine()
    assert not folder.exists()


class MadeUpRay:
    """Ray's functions that `RayWorkers` calls, whose actors answer at once; `answers` says what."""

    class exceptions:
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class OutOfMemoryError(RayError):
            pass

    def __init__(self, nodes, answers):
        self.resources, self.answers, self.actors, self.killed = nodes, iter(answers), [], []

    def init(self, address, **options):
        pass

    def shutdown(self):
        pass

    def remote(self, kind):
        return self

    def options(self, **options):
        def make():
            method = SimpleNamespace(remote=lambda argument: object())
            self.actors.append(SimpleNamespace(start=method, embed=method))
            return self.actors[-1]

        return SimpleNamespace(remote=make)

    def cluster_resources(self):
        return {}

    def nodes(self):
        return [{"Alive": alive, "Resources": resources} for alive, resources in self.resources]

    def wait(self, references, timeout):
        return references[:1], references[1:]

    def get(self, reference):
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def made_up_ray(monkeypatch):
    """What puts a made-up Ray in the place of Ray, and gives the workers on it with parts to embed."""

    def make(answers, nodes=((True, {"CPU": 4.0}),), **changes):
        ray = MadeUpRay(nodes, answers)
        monkeypatch.setitem(sys.modules, "ray", ray)
        recipe = dataclasses.replace(RECIPE, settings=IndexSettings(ray="auto"), **changes)
        return ray, RayWorkers(recipe)

    return make


def test_there_are_as_many_workers_as_nodes_have_room_for_and_parts_want(made_up_ray):
    nodes = [(True, {"CPU": 5.0}), (True, {"CPU": 2.0, "GPU": 1.0}), (True, {"CPU": 1.0}), (False, {"CPU": 99.0})]
    for gpus, wanted, count in ((0.0, 9, 3), (0.0, 2, 2), (1.0, 9, 1), (0.25, 9, 1)):
        ray, workers = made_up_ray([], nodes, gpus=gpus)
        with workers:
            workers.grow(wanted)
            workers.grow(wanted)
        assert len(ray.actors) == count
    with (
        made_up_ray([], nodes, threads=6)[1] as workers,
        pytest.raises(UserError, match="a worker of 6 cores"),
    ):
        workers.grow(1)
    assert room_on({"CPU": 64.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 0.25}) == 8


def test_a_worker_that_is_lost_gives_its_part_back_and_another_one_takes_its_place(made_up_ray):
    (part,) = cut(LIST[:1], 1.0)
    died = MadeUpRay.exceptions.RayError("The actor died.\nand much more")
    ray, workers = made_up_ray([Started("n", "bits"), died, Started("n", "bits"), Embedded("n", [BAD], [])])
    with workers:
        for expected in (Lost("its worker died (RayError)"), [BAD]):
            workers.grow(1)
            assert workers.news(1.0) == [] and workers.free()
            workers.give(part)
            assert not workers.free() and workers.news(1.0) == [(part, expected)]
    assert ray.killed == ray.actors[:1] and len(ray.actors) == 2


def test_what_every_worker_of_a_node_would_do_wrong_ends_the_run(made_up_ray, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"here")
    here = Listed(str(tmp_path / "a.mp4"), Stamp(4, 0))
    changed = Listed(str(tmp_path / "a.mp4"), Stamp(5, 0))  # since it was listed: no node is to blame
    parts = cut([here, changed], 1e-9)
    ray, workers = made_up_ray([Started("n", "bits"), Embedded("n", [BAD], [changed]), Embedded("n", [BAD], [here])])
    with workers:
        workers.grow(1)
        workers.news(1.0)
        workers.give(parts[1])
        assert workers.news(1.0) == [(parts[1], [BAD])]
        workers.give(parts[0])
        with pytest.raises(UserError, match=r"node n does not find .*a\.mp4 as this machine does"):
            workers.news(1.0)
    with made_up_ray([Refused("10.0.0.7", "no such weights")])[1] as workers:
        workers.grow(1)
        with pytest.raises(UserError, match=r"on node 10\.0\.0\.7 cannot work: no such weights"):
            workers.news(1.0)
    ray, workers = made_up_ray([MadeUpRay.exceptions.OutOfMemoryError()] * START_TRIES)
    with workers, pytest.raises(UserError, match=r"workers were lost as they started: .* memory was full"):
        while True:
            workers.grow(1)
            workers.news(1.0)
    assert len(ray.actors) == START_TRIES


def test_nodes_that_compute_other_bits_are_named(made_up_ray, caplog):
    nodes = [(True, {"CPU": 8.0})]
    for bits, said in (("same", False), ("other", True)):
        caplog.clear()
        with made_up_ray([Started("n1", "same"), Started("n2", bits)], nodes)[1] as workers:
            workers.grow(2)
            workers.news(1.0), workers.news(1.0)
        assert ("nodes n1 and n2 compute different bits" in caplog.text) == said


# --- a cluster of two nodes, each with a core -----------------------------------------------------------------------

# A decord, for PYTHONPATH, that leaves reading to OpenCV, and notes beside the videos what it is asked for. Its
# process's parent is the worker: a "poison" kills it, and a "waits" waits, once, and names it.
DECORD = """
import os, signal, time
class logging:
    QUIET = ERROR = 0
    set_level = staticmethod(lambda level: None)
def cpu(number):
    return None
class VideoReader:
    def __init__(self, path, **_):
        folder, name = os.path.split(path)
        with open(folder + "/asked.txt", "a") as file:
            file.write(name + "\\n")
        if "poison" in name:
            os.kill(os.getppid(), signal.SIGKILL)
        if "waits" in name and not os.path.exists(path + ".worker"):
            with open(path + ".partial", "w") as file:
                file.write(str(os.getppid()))
            os.rename(path + ".partial", path + ".worker")
            time.sleep(10_000)
        raise RuntimeError("leaves it to OpenCV")
"""
NODE = ("--block", "--num-cpus=1", "--object-store-memory=83886080", "--disable-usage-stats")


# others on this machine, and in its network, are kept out
ACCESS = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@pytest.fixture(scope="module")
def ray_cluster():
    """The address of a cluster of two nodes."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install -r requirements-scale.txt")
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # the paths of sockets must be short
    nodes = []

    def begin(*words):
        with (folder / f"node{len(nodes)}.txt").open("w+") as file:
            command = [sys.executable, "-u", "-m", "ray.scripts.scripts", "start", *words, *NODE]
            options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            node = subprocess.Popen(command, env=os.environ | ENVIRONMENT | ACCESS, **options)
        nodes.append(node)
        said = Path(file.name)
        wait_for(lambda: "Ray runtime started" in said.read_text() or node.poll(), node)
        assert node.poll() is None, said.read_text()
        return said.read_text()

    try:
        head = begin("--head", "--port=0", f"--temp-dir={folder}", "--include-dashboard=false")
        address = re.search(r"--address='([^']+)'", head)[1]
        begin(f"--address={address}")
        yield address
    finally:
        for node in nodes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    return folder


@pytest.fixture
def words(tiny_run, tmp_path, videos):
    """The command without the index's folder and the cluster, and its environment."""
    (tmp_path / "decord").mkdir()
    (tmp_path / "decord" / "decord.py").write_text(DECORD)
    clip = path_of(tiny_run, "--pretrained_clip_name")
    flags = ["--pretrained_clip_name", clip, "--max_frames", "4", "--max_words", "12", "--window", "2", "--stride", "1"]
    return ["-m", "search", "index", videos, *flags], ENVIRONMENT | ACCESS | {"PYTHONPATH": str(tmp_path / "decord")}


def on_cluster(address, index_dir):
    """Flags by which each video is a part."""
    return ["--index_dir", index_dir, "--ray", address, "--ray_part", "0.000001", "--ray_cpus", "1"]


def asked(folder):
    """How often each video was begun to be read."""
    return Counter((folder / "asked.txt").read_text().split())


@pytest.mark.slow
def test_a_cluster_of_which_a_worker_is_killed_makes_the_index_of_one_machine(ray_cluster, words, videos, tmp_path):
    command, environment = words
    for number, name in enumerate(("a", "b waits", "c", "d", "e", "f")):
        write_video(videos / f"{name.replace(' ', '_')}.mp4", frames=25 * (1 + number % 3), width=64 + 32 * number)
    (videos / "g.mp4").write_bytes((videos / "a.mp4").read_bytes()[:900])
    # in parts of two videos or so
    flags = [*on_cluster(ray_cluster, tmp_path / "index"), "--ray_part", str(2.2 * largest(videos) / MEGA)]
    process = start(*command, *flags, environment=environment)
    worker = videos / "b_waits.mp4.worker"
    wait_for(worker.exists, process)
    os.kill(int(worker.read_text()), signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 1 and "1 bad" in printed, printed  # the broken one
    assert "is done again, because its worker died" in printed and "raylet" not in printed
    assert asked(videos)["b_waits.mp4"] == 2 and asked(videos)["a.mp4"] == 2 and asked(videos)["f.mp4"] == 1
    done = run_to_end(*command, "--index_dir", tmp_path / "one", environment=environment)
    assert done.returncode == 1, done.stderr
    assert bits(tmp_path / "index") == bits(tmp_path / "one")
    assert not (tmp_path / "index" / PARTS).exists()


def largest(folder):
    return max(path.stat().st_size for path in folder.glob("*.mp4"))


@pytest.mark.slow
def test_ctrl_c_keeps_finished_parts_and_a_poison_is_bad(ray_cluster, words, videos, tmp_path):
    command, environment = words
    for name in ("a_waits", "b", "c_poison", "d", "e"):
        write_video(videos / f"{name}.mp4", frames=30)
    flags = on_cluster(ray_cluster, tmp_path / "index")
    process = start(*command, *flags, environment=environment)
    # the first video holds up the index, while the other worker finishes all others
    wait_for(lambda: len(list((tmp_path / "index" / PARTS).glob("*.failures.json"))) == 4, process)
    assert read_store(tmp_path / "index").videos() == []
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "the same command continues" in printed, printed
    done = run_to_end(*command, *flags, environment=environment, timeout=120)
    assert done.returncode == 1 and "c_poison.mp4: its worker died" in done.stdout, done.stdout + done.stderr
    # a video of its own is a part, which is tried and then tried as a video
    assert asked(videos) == {"a_waits.mp4": 2, "b.mp4": 1, "c_poison.mp4": TRIES, "d.mp4": 1, "e.mp4": 1}
    (videos / "c_poison.mp4").unlink()
    one = run_to_end(*command, "--index_dir", tmp_path / "one", environment=environment)
    assert one.returncode == 0, one.stderr
    assert table(tmp_path / "index", "problem IS NULL") == table(tmp_path / "one")
    assert bits(tmp_path / "index")[0] == bits(tmp_path / "one")[0]


def table(index_dir, which="TRUE"):
    """The windows of some videos: all but the numbers."""
    with contextlib.closing(sqlite3.connect(index_dir / DATABASE)) as connection:
        query = "SELECT path, size, mtime_ns, seconds, row, start, end, picture_at, picture_size FROM videos, windows"
        return connection.execute(f"{query} WHERE windows.video = videos.id AND {which} ORDER BY row").fetchall()


@pytest.mark.slow
def test_what_no_worker_can_do_ends_with_its_reason(ray_cluster, words, videos, tmp_path):
    command, environment = words
    write_video(videos / "a.mp4", frames=25)
    for address, more, reason in (
        ("127.0.0.1:9", [], "--ray 127.0.0.1:9 is no cluster that can be reached: Connection refused"),
        (ray_cluster, ["--ray_cpus", "5"], "no node has room for a worker of 5 cores and 0 GPUs: the nodes have 1"),
        (ray_cluster, ["--ray_gpus", "1"], "no node has room for a worker of 1 cores and 1 GPUs"),
    ):
        flags = [*on_cluster(address, tmp_path / "index"), *more]
        done = run_to_end(*command, *flags, environment=environment, timeout=120)
        assert done.returncode == 2 and reason in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
