"""Workers that are actors on a Ray cluster."""

import hashlib
import importlib.util
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from dataloaders.video.reader import ROOT, DecodingSettings
from dataloaders.video.windows import Cutting
from search.cluster.job import Lost, merged
from search.cluster.parts import Listed, ListPart, PartFiles, is_there
from search.models import check_fingerprint, open_run
from search.settings import IndexSettings, ModelSettings
from search.store import Part
from search.windows import VideoWindow, embed, embed_videos

logger = logging.getLogger("stop")

FORMAT = 1  # of a finished part's files
START_TRIES = 3  # workers that die, one after the other, before they are ready
LOOK = 10.0  # seconds between two looks at how many workers the cluster has room for
CONNECT = 10.0  # seconds for the cluster to answer
PATIENCE = 60.0  # seconds without a worker before that is said
INSTALL = ".venv/bin/python -m pip install -r requirements-scale.txt"
EVERYWHERE = (
    "every node needs the project, its .venv, the weights and the videos at the same paths (docs/search.md, "
    "Beyond one machine)"
)
LOCAL = "local"  # in place of an address: a cluster of this machine alone, for one command
# What Ray reads when it is imported: no usage statistics are sent, and what it reports of dead workers is not printed
# between our own lines.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}


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
