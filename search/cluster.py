"""Embedding videos on a Ray cluster, whose workers are handed parts of the list of videos.

A worker does with a part what one machine does with its whole list (`windows.embed_videos`). What it gives comes back
through Ray and is written into the index folder: no file is shared but the videos, which each node finds at the same
paths, and the project with its weights. A finished part is two files, ``parts/NAME.npz`` with the embeddings and
``parts/NAME.failures.json`` with its videos and why the bad ones are bad; the latter is written last. NAME is a hash of
all that they depend on, so that a later run takes what fits it and nothing else.

Whatever order parts are finished in, their videos are put into the index in the order of the list, as one machine does
it. So the index is the same to the bit, and it grows while the cluster works.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import re
import secrets
import socket
import sys
import time
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from common.errors import UserError
from common.files import write_whole
from common.progress import Progress
from dataloaders.video.reader import ROOT, DecodingSettings
from dataloaders.video.windows import Cutting
from search.models import check_fingerprint, open_run
from search.settings import IndexSettings, ModelSettings
from search.store import DTYPE, Part, Stamp
from search.windows import VideoWindow, embed, embed_videos

logger = logging.getLogger("stop")

PARTS = "parts"  # folder of an index
FORMAT = 1  # of a finished part's files
MEGA = 10**6
TRIES = 2  # of a part whose worker dies or fails, and then of each of its videos alone
HOPELESS = 5  # parts that failed while none was finished
START_TRIES = 3  # workers that die, one after the other, before they are ready
LOOK = 10.0  # seconds between two looks at how many workers the cluster has room for
CONNECT = 10.0  # seconds for the cluster to answer
PATIENCE = 60.0  # seconds without a worker before that is said
STEP = 1.0  # seconds that news of the workers is waited for at a time
INSTALL = ".venv/bin/python -m pip install -r requirements-scale.txt"
EVERYWHERE = (
    "every node needs the project, its .venv, the weights and the videos at the same paths (docs/search.md, "
    "Beyond one machine)"
)
LOCAL = "local"  # in place of an address: a cluster of this machine alone, for one command
# What Ray reads when it is imported: no usage statistics are sent, and what it reports of dead workers is not printed
# between our own lines.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}


class Listed(NamedTuple):
    """A video of the list."""

    path: str
    stamp: Stamp


@dataclass(frozen=True)
class Recipe:
    """All but the videos that decides what embedding them gives; every worker gets it.

    Attributes:
        recorded: settings of the index. model: flags. settings: how to index.
        index_dir: of the index. folder: in which the command was given, where relative paths begin.
        threads: that torch computes with. gpus: of a worker; 0 for the CPU.
    """

    recorded: dict[str, str]
    model: ModelSettings
    settings: IndexSettings
    index_dir: Path
    folder: Path
    threads: int
    gpus: float

    @classmethod
    def of(cls, recorded: dict[str, str], model: ModelSettings, settings: IndexSettings, index_dir: Path) -> "Recipe":
        """That of an index; threads and GPU are, where they are not given, what this machine would compute with."""
        gpus = float(torch.cuda.is_available()) if settings.ray_gpus is None else settings.ray_gpus
        threads = settings.ray_cpus or torch.get_num_threads()
        return cls(recorded, model, settings, index_dir, Path.cwd(), threads, gpus)

    def identity(self) -> dict[str, Any]:
        """What can change a bit of what embedding gives, or whether a video is a bad one."""
        of_index = {name: self.recorded[name] for name in ("fingerprint", "window", "stride", "max_frames")}
        of_settings = {name: getattr(self.settings, name) for name in ("batch_size", "video_time_limit")}
        computed = {"precision": self.model.precision, "threads": self.threads, "gpu": self.gpus > 0}
        return {"format": FORMAT, **of_index, **of_settings, **computed}

    def cutting(self) -> Cutting:
        """How videos are cut into windows."""
        numbers = [float(self.recorded[name]) for name in ("window", "stride")]
        return Cutting(*numbers, int(self.recorded["max_frames"]))


@dataclass(frozen=True, eq=False)
class ListPart:
    """A part of the list of videos; equal to itself alone."""

    videos: tuple[Listed, ...]

    def name(self, identity: dict[str, Any]) -> str:
        """By which its files are known."""
        return hashlib.sha256(json.dumps([identity, self.videos], sort_keys=True).encode()).hexdigest()[:24]

    @property
    def kilobytes(self) -> int:
        """Of its videos."""
        return sum(video.stamp.kilobytes for video in self.videos)


@dataclass(frozen=True)
class Lost:
    """Of a part whose worker died or failed: why, to follow "because"."""

    reason: str


def cut(videos: Sequence[Listed], megabytes: float) -> list[ListPart]:
    """Cut a list into parts: each takes the next videos, in order, while they have no more than `megabytes` together.

    A video that has more is a part of its own.
    """
    parts: list[list[Listed]] = []
    size = 0.0
    for video in videos:
        size += video.stamp.size
        if not parts or size > megabytes * MEGA:
            parts.append([])
            size = video.stamp.size
        parts[-1].append(video)
    return [ListPart(tuple(part)) for part in parts]


class PartFiles:
    """The finished parts in an index folder that were made under one identity; see `Recipe.identity`."""

    def __init__(self, index_dir: Path, identity: dict[str, Any]):
        self._folder, self._identity = index_dir / PARTS, identity

    def finished(self) -> Iterator[tuple[ListPart, dict[str, str]]]:
        """The parts, each with its bad videos: path and reason."""
        for path, part, failures in records(self._folder):
            embeddings_file, failures_file = self._files(part)
            if path == failures_file and embeddings_file.is_file():
                yield part, failures

    def write(self, part: ListPart, results: Sequence[Part | str]) -> None:
        """Keep what came of a part's videos, in their order."""
        self._folder.mkdir(exist_ok=True)
        good = [result for result in results if isinstance(result, Part)]
        pictures = [picture for result in good for picture in result.pictures]
        arrays = {
            "seconds": np.array([result.seconds for result in good], dtype=np.float64),
            "windows": np.array([len(result.pictures) for result in good], dtype=np.int64),
            "bounds": np.array([span for result in good for span in result.bounds], dtype=np.float64).reshape(-1, 2),
            "embeddings": np.concatenate([np.zeros((0, 0))] if not good else [result.embeddings for result in good]),
            "picture_sizes": np.array([len(picture) for picture in pictures], dtype=np.int64),
            "pictures": np.frombuffer(b"".join(pictures), dtype=np.uint8),
        }
        arrays["embeddings"] = arrays["embeddings"].astype(DTYPE)  # as the index has them
        paired = zip(part.videos, results, strict=True)
        failures = {video.path: result for video, result in paired if isinstance(result, str)}
        record = json.dumps({"videos": part.videos, "failures": failures}, indent=1, ensure_ascii=False)
        embeddings_file, failures_file = self._files(part)
        write_whole(embeddings_file, lambda file: np.savez(file, **arrays))
        write_whole(failures_file, lambda file: file.write(record.encode()))

    def read(self, part: ListPart) -> dict[Listed, Part | str]:
        """What came of the videos of a finished part.

        Raises:
            UserError: if its files are damaged.
        """
        embeddings_file, failures_file = self._files(part)
        try:
            failures = json.loads(failures_file.read_text(encoding="utf-8"))["failures"]
            with np.load(embeddings_file, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            folder = self._folder
            raise UserError(f"{embeddings_file} is not whole: {error}; delete {folder} and index again") from error
        ends = np.cumsum(arrays["picture_sizes"]).tolist()
        data = arrays["pictures"].tobytes()
        pictures = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        bounds = [tuple(span) for span in arrays["bounds"].tolist()]
        results, at, place = {}, 0, 0
        for video in part.videos:
            if video.path in failures:
                results[video] = failures[video.path]
                continue
            rows = slice(at, at := at + int(arrays["windows"][place]))
            seconds = float(arrays["seconds"][place])
            results[video] = Part(seconds, bounds[rows], arrays["embeddings"][rows], pictures[rows])
            place += 1
        return results

    def remove(self, part: ListPart) -> None:
        """Forget a finished part."""
        for path in reversed(self._files(part)):
            path.unlink(missing_ok=True)

    def _files(self, part: ListPart) -> tuple[Path, Path]:
        name = part.name(self._identity)
        return self._folder / f"{name}.npz", self._folder / f"{name}.failures.json"


def records(folder: Path) -> Iterator[tuple[Path, ListPart, dict[str, str]]]:
    """Of a folder of finished parts, under whatever identity: each one's second file and what it says."""
    for path in sorted(folder.glob("*.failures.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no part of ours
            record = json.loads(path.read_text(encoding="utf-8"))
            part = ListPart(tuple(Listed(name, Stamp(*stamp)) for name, stamp in record["videos"]))
            yield path, part, record["failures"]


def remove_parts(index_dir: Path, needed: Callable[[Listed], bool]) -> None:
    """Remove the finished parts in an index folder, under whatever identity, no video of which is needed any more."""
    folder = index_dir / PARTS
    if folder.is_dir():
        kept = {path.name.split(".")[0] for path, part, _ in records(folder) if any(map(needed, part.videos))}
        for path in folder.iterdir():
            if path.name.split(".")[0] not in kept:
                path.unlink()
        if not kept:
            folder.rmdir()


# --- the driver -----------------------------------------------------------------------------------------------------


class Workers(Protocol):
    """Those who embed parts."""

    def grow(self, wanted: int) -> None:
        """See to it that there are as many as are wanted and there is room for."""

    def free(self) -> bool:
        """Whether one is ready and has nothing to do."""

    def give(self, part: ListPart) -> None:
        """Hand a part to one that is free."""

    def news(self, timeout: float) -> list[tuple[ListPart, list[Part | str] | Lost]]:
        """What has come of parts, waited for so many seconds at most."""


def embed_on_cluster(videos: Sequence[Listed], recipe: Recipe) -> Iterator[Part | str]:
    """Embed videos on the cluster of `recipe.settings.ray`; what earlier runs have finished is taken from them.

    Yields:
        What came of each video, in order: a part of the index, or why it is a bad one.

    Raises:
        UserError: if there is no cluster, or its workers cannot do it.
    """
    files = PartFiles(recipe.index_dir, recipe.identity())
    settings = recipe.settings
    return merged(videos, files, settings.ray_part, settings.retry_bad, lambda: RayWorkers(recipe))


def merged(
    videos: Sequence[Listed],
    files: PartFiles,
    megabytes: float,
    retry_bad: bool,
    connect: Callable[[], contextlib.AbstractContextManager[Workers]],
) -> Iterator[Part | str]:
    """What comes of videos, in order, from finished parts and from parts that are cut and embedded now.

    Args:
        files: the finished parts. A part's are removed when its last video was taken and the next one is asked for.
        megabytes: as for `cut`.
        retry_bad: not to take from an earlier run that a video is bad.
        connect: gives the workers, when there is a part for them.
    """
    made: dict[Listed, ListPart] = {}
    for part, failures in files.finished():
        bad = {video for video in part.videos if video.path in failures and (retry_bad or video in made)}
        made |= dict.fromkeys(set(part.videos) - bad, part)
    made = {video: made[video] for video in videos if video in made}
    rest = cut([video for video in videos if video not in made], megabytes)
    opened: dict[ListPart, dict[Listed, Part | str]] = {}  # with what is still to be taken of each
    with contextlib.ExitStack() as stack:
        workers = stack.enter_context(connect()) if rest else None
        job = stack.enter_context(_Job(rest, made, files, workers))
        for video in videos:
            part = job.wait_for(video)
            if part not in opened:
                opened[part] = {other: result for other, result in files.read(part).items() if made.get(other) is part}
            yield opened[part].pop(video)
            if not opened[part]:
                del opened[part]
                files.remove(part)


class _Job:
    """Sees parts through until each is finished; to be entered.

    A part whose worker dies or fails is done again; if that happens again, its videos are done one by one, and what
    takes its worker along even so is a bad video.
    """

    def __init__(
        self, parts: Sequence[ListPart], made: dict[Listed, ListPart], files: PartFiles, workers: Workers | None
    ):
        """Begin nothing yet.

        Args:
            parts: to finish. made: gets their videos; in which finished part each is.
            files: get the finished parts. workers: None where there are no parts.
        """
        self._made, self._files, self._workers = made, files, workers
        self._waiting = deque(parts)
        self._unfinished, self._embedded = len(parts), 0
        self._tries: Counter[ListPart] = Counter()
        self._progress = Progress(sum(part.kilobytes for part in parts), "indexing", "kB", "kB", shown=bool(parts))

    def __enter__(self) -> "_Job":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(*error)

    def wait_for(self, video: Listed) -> ListPart:
        """The finished part that a video is in."""
        self._step(0.0)  # also where it is there: the workers are not to wait for the index
        while video not in self._made:
            self._step(STEP)
        return self._made[video]

    def _step(self, timeout: float) -> None:
        """Hand out parts, and wait for news so many seconds at most."""
        if not self._unfinished:
            return
        self._workers.grow(self._unfinished)
        while self._waiting and self._workers.free():
            self._workers.give(self._waiting.popleft())
        for part, results in self._workers.news(timeout):
            if isinstance(results, Lost):
                self._again(part, results.reason)
            else:
                self._embedded += 1
                self._finish(part, results)

    def _finish(self, part: ListPart, results: list[Part | str]) -> None:
        self._files.write(part, results)
        self._made |= dict.fromkeys(part.videos, part)
        self._unfinished -= 1
        self._progress.note(parts_left=self._unfinished)
        self._progress.update(part.kilobytes)

    def _again(self, part: ListPart, reason: str) -> None:
        """See to a part that was lost."""
        self._tries[part] += 1
        if not self._embedded and sum(tries >= TRIES for tries in self._tries.values()) >= HOPELESS:
            raise UserError(f"{HOPELESS} parts were lost again and again and none was embedded; the last: {reason}")
        first, others = part.videos[0].path, len(part.videos) - 1
        which = f"the part of {1 + others} videos from {first} on" if others else first
        if self._tries[part] < TRIES:
            logger.warning("%s is done again, because %s", which, reason)
            self._waiting.appendleft(part)  # the index waits for it
        elif others:
            logger.warning("%s is done video by video, because %s", which, reason)
            self._waiting.extendleft(ListPart((video,)) for video in reversed(part.videos))
            self._unfinished += others
        else:
            self._finish(part, [f"{reason}, {TRIES} times"])


# --- Ray ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """A worker's answer that it is ready.

    Attributes:
        node: its address. bits: a hash of what it makes of a window that is the same for all.
    """

    node: str
    bits: str


@dataclass(frozen=True)
class Refused:
    """A worker's answer that it cannot work."""

    node: str
    reason: str


@dataclass(frozen=True)
class Embedded:
    """A worker's answer about a part: what came of each video, and those that are not, on its node, what was listed."""

    node: str
    results: list[Part | str]
    unseen: list[Listed]


class Worker:
    """What an actor is: a model, and the videos of the parts that it is handed."""

    def start(self, recipe: Recipe) -> Started | Refused:
        """Load the model and look whether it is that of the index."""
        import ray

        node = ray.util.get_node_ip_address()
        try:
            os.chdir(recipe.folder)
            if not recipe.gpus:
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            torch.set_num_threads(recipe.threads)
            run = open_run(recipe.recorded, recipe.model)
            check_fingerprint(recipe.index_dir, recipe.recorded, recipe.model, run)
        except (UserError, OSError) as error:
            return Refused(node, str(error))
        if recipe.gpus and run.compute.processes.device.type == "cpu":
            return Refused(node, "torch finds no GPU there: give --ray_gpus 0, or a torch that does")
        self._run, self._recipe, self._node = run, recipe, node
        shape = (run.max_frames, 3, run.clip.image_size, run.clip.image_size)
        frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        embedding = embed(run, [VideoWindow(0, 0.0, 1.0, 1.0, frames, run.max_frames)])
        return Started(node, hashlib.sha256(embedding.tobytes()).hexdigest())

    def embed(self, part: ListPart) -> Embedded:
        """Embed a part's videos as one machine does."""
        run, settings = self._run, self._recipe.settings
        unseen = [video for video in part.videos if not is_there(video)]
        decoding = DecodingSettings(video_time_limit=settings.video_time_limit, decoder_errors=run.decoder_errors)
        paths = [Path(video.path) for video in part.videos]
        results = embed_videos(run, paths, self._recipe.cutting(), decoding, settings.batch_size)
        return Embedded(self._node, list(results), unseen)


def is_there(video: Listed) -> bool:
    """Whether a machine has a file of a video's size; times of change may differ where a disk is mounted."""
    try:
        return os.stat(video.path).st_size == video.stamp.size
    except OSError:
        return False


def check_ray() -> None:
    """Say how to get Ray.

    Raises:
        UserError: if it is not installed.
    """
    if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
        raise UserError(f"--ray needs Ray, which is not installed: {INSTALL}")


class RayWorkers:
    """Actors on a Ray cluster; to be entered. Each is a `Worker`."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self._limit = recipe.settings.ray_workers
        self._asked: dict[Any, tuple[Any, ListPart | None]] = {}  # reference to an answer: actor, and part or None
        self._idle: list[Any] = []
        self._lost_starts = 0
        self._bits: tuple[str, str] | None = None
        self._room = 0
        self._looked = -LOOK
        self._worked = time.monotonic()

    def __enter__(self) -> "RayWorkers":
        address = self._recipe.settings.ray
        self._ray = import_ray(address)
        python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        try:
            if match := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):  # Ray itself would try for minutes
                socket.create_connection((match[1].strip("[]"), int(match[2])), timeout=CONNECT).close()
            self._ray.init(
                address,
                runtime_env={"env_vars": {"PYTHONPATH": python_path}},
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=False,
            )
        except (OSError, RuntimeError, ValueError, AssertionError, self._ray.exceptions.RayError) as error:
            raise UserError(
                f"--ray {address} is no cluster that can be reached: {brief(error)}\n"
                "Python, Ray and RAY_AUTH_MODE have to be the same here as on its nodes (docs/search.md, Beyond one "
                "machine)"
            ) from error
        self._actors = self._ray.remote(Worker).options(
            num_cpus=self._recipe.threads, num_gpus=self._recipe.gpus, max_restarts=0, max_task_retries=0
        )
        if not self._recipe.gpus and self._ray.cluster_resources().get("GPU"):
            logger.warning("the cluster has GPUs that this command does not use: --ray_gpus 1 gives each worker one")
        return self

    def __exit__(self, *error: object) -> None:
        self._ray.shutdown()

    def grow(self, wanted: int) -> None:
        """See to it that there are as many as are wanted and there is room for.

        Raises:
            UserError: if no node of the cluster has ever had room for one.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK:
            needs = {"CPU": float(self._recipe.threads), "GPU": self._recipe.gpus}
            nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
            self._room = sum(room_on(node, needs) for node in nodes)
            if not self._room and self._looked < 0:
                found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes)
                raise UserError(
                    f"no node has room for a worker of {needs['CPU']:g} cores and {needs['GPU']:g} GPUs: "
                    f"the nodes have {found}; --ray_cpus and --ray_gpus say what a worker gets"
                )
            self._looked = now
        there = len(self._asked) + len(self._idle)
        for _ in range(min(wanted, self._room, self._limit or wanted) - there):
            actor = self._actors.remote()
            self._asked[actor.start.remote(self._recipe)] = (actor, None)
        if any(part for _, part in self._asked.values()) or self._idle:
            self._worked = now
        elif now - self._worked >= PATIENCE:
            logger.warning("no worker for %.0f seconds: others hold the cluster, or its nodes are gone", PATIENCE)
            self._worked = now

    def free(self) -> bool:
        """Whether one is ready and has nothing to do."""
        return bool(self._idle)

    def give(self, part: ListPart) -> None:
        """Hand a part to one that is free."""
        actor = self._idle.pop()
        self._asked[actor.embed.remote(part)] = (actor, part)

    def news(self, timeout: float) -> list[tuple[ListPart, list[Part | str] | Lost]]:
        """What has come of parts, waited for so many seconds at most.

        Raises:
            UserError: if a worker cannot work at all, or sees other videos than this machine does.
        """
        if not self._asked:
            time.sleep(timeout)
            return []
        found = []
        for reference in self._ray.wait(list(self._asked), timeout=timeout)[0]:
            actor, part = self._asked.pop(reference)
            answer = self._answer(reference)
            if isinstance(answer, Lost):
                self._ray.kill(actor)  # it may be there still, and in what state
            else:
                self._idle.append(actor)
            if part is None:
                self._started(answer)
            else:
                found.append((part, answer if isinstance(answer, Lost) else self._checked(answer)))
        return found

    def _answer(self, reference: Any) -> Started | Refused | Embedded | Lost:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            return Lost(f"its worker failed with {type(error.cause).__name__}: {brief(error.cause)}")
        except errors.OutOfMemoryError:
            return Lost("its worker was ended when its node's memory was full")
        except errors.RayError as error:
            return Lost(f"its worker died ({type(error).__name__})")

    def _started(self, answer: Started | Refused | Lost) -> None:
        if isinstance(answer, Refused):
            raise UserError(f"the worker on node {answer.node} cannot work: {answer.reason}\n{EVERYWHERE}")
        if isinstance(answer, Lost):
            self._lost_starts += 1
            if self._lost_starts == START_TRIES:
                raise UserError(f"{START_TRIES} workers were lost as they started: {answer.reason}\n{EVERYWHERE}")
            return
        self._lost_starts = 0
        self._bits = self._bits or (answer.bits, answer.node)
        if answer.bits != self._bits[0]:
            logger.warning(
                "nodes %s and %s compute different bits: the index is as good, but not to the bit what one machine "
                "makes; nodes with the same processors, GPUs and packages do",
                self._bits[1],
                answer.node,
            )

    def _checked(self, answer: Embedded) -> list[Part | str]:
        if missed := [video.path for video in answer.unseen if is_there(video)]:
            raise UserError(f"node {answer.node} does not find {missed[0]} as this machine does\n{EVERYWHERE}")
        return answer.results


def brief(error: Exception) -> str:
    """An error's message in a line, without the calls that led to it."""
    lines = (getattr(error, "strerror", None) or str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1].strip()}"


def room_on(resources: dict[str, float], needs: dict[str, float]) -> int:
    """How many workers with some needs a node has room for."""
    return int(min(resources.get(name, 0.0) / need for name, need in needs.items() if need))


def import_ray(address: str) -> ModuleType:
    """Ray, that keeps quiet."""
    # else Ray would leave a token in the home folder, which every later cluster would want to be given
    private = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)} if address == LOCAL else {}
    for name, value in (QUIET | private).items():
        os.environ.setdefault(name, value)
    import ray

    return ray
