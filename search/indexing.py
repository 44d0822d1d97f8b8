"""Bringing an index up to date with some folders of videos."""

import contextlib
import csv
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import UserError
from common.progress import Progress, duration
from dataloaders.video.reader import DecodingSettings
from dataloaders.video.windows import Cutting
from dataloaders.video_files import list_videos, no_videos
from modules.program.loading import Run
from modules.tasks.embedding import check_searchable
from search.cluster.on_ray import Recipe, check_ray, embed_on_cluster
from search.cluster.parts import Listed, is_there, remove_parts
from search.models import SAME, check_fingerprint, check_same, fingerprint, open_run, wanted_settings
from search.settings import IndexSettings, ModelSettings
from search.store import DATABASE, Part, Stamp, Store, Video, open_for_writing, read_store
from search.windows import embed_videos

logger = logging.getLogger("stop")

CUT = ("window", "stride")
FORGET = "If they are meant to be gone, give --forget_empty, which forgets them."


@dataclass(frozen=True)
class Found:
    """A video file: its path as text, where names of other encodings are escaped."""

    path: str
    stamp: Stamp
    problem: str | None = None


@dataclass
class Outcome:
    """What bringing an index up to date did.

    Attributes:
        added, changed, gone, same: videos. bad: the path of each bad video and why it is one, also of earlier runs.
        seconds: of video that were embedded.
    """

    added: int = 0
    changed: int = 0
    gone: int = 0
    same: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.added} new", f"{self.changed} changed", f"{self.gone} gone", f"{self.same} as before"]
        return f"{', '.join(parts)}; {len(self.bad)} bad; {duration(self.seconds)} of video embedded"


def find_videos(folder: Path, forget_empty: bool) -> tuple[dict[str, Found], list[str]]:
    """The videos of a folder at any depth, by path, each once whatever links there are; and folders that are unread.

    Raises:
        UserError: if it is no folder, cannot be read, or holds no videos.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if os.fsencode(os.path.abspath(folder)).decode("utf-8", "backslashreplace") != os.path.abspath(folder):
        raise UserError(f"the folder's name is not UTF-8: {os.fsencode(folder)!r}; rename it")
    listing = list_videos(folder)
    if "" in listing.unread:
        raise UserError(f"{folder} cannot be read: {listing.unread[''].strerror}")
    root = os.path.abspath(folder)
    if not listing.files and not forget_empty:
        raise UserError(f"{no_videos('the folder', folder, listing)}\n{FORGET}")
    found, seen = {}, set()
    for relative in sorted(listing.files, key=lambda path: (path.count("/"), path)):
        path = os.path.join(root, relative)
        real = os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            video = _look_at(path)
            found[video.path] = video
    return found, [os.path.join(root, path) for path in listing.unread]


def _look_at(path: str) -> Found:
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    if text != path:
        return Found(text, Stamp(0, 0), "its name is not UTF-8; rename it")
    try:
        return Found(path, Stamp.of(os.stat(path)))
    except OSError as error:
        return Found(path, Stamp(0, 0), f"it cannot be looked at: {error.strerror}")


def _name_of(path: str, folders: Iterable[str]) -> str:
    """A video's name: its path from the outermost indexed folder on, which it begins with."""
    outermost = min((folder for folder in folders if _is_in(path, [folder])), key=len)
    return os.path.relpath(path, os.path.dirname(outermost))


def read_bad(path: Path) -> dict[str, str]:
    """The bad videos that ``preprocess/check_videos.py`` listed: absolute path and reason.

    A relative path begins in the folder that the check was started in, which has to be the present one.

    Raises:
        UserError: if the file is no such list.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {os.path.abspath(row["video"]): row["reason"] for row in rows}
    except (OSError, UnicodeError, KeyError, TypeError, csv.Error) as error:  # TypeError: of a row that ends early
        reason = getattr(error, "strerror", None) or "it has no columns video and reason"
        raise UserError(f"--bad_videos {path} is no list of preprocess/check_videos.py: {reason}") from error


def update(
    folders: Iterable[Path],
    index_dir: Path,
    settings: IndexSettings,
    model: ModelSettings,
    given: set[str],
    load: Callable[[dict[str, str], ModelSettings], Run] = open_run,
) -> Outcome:
    """Index what is new or changed in some folders, and forget what is gone from them and from those indexed before.

    Args:
        folders: to look for videos in.
        index_dir: the index, made if it is not there.
        settings: how. model: with what.
        given: names of the flags that were given; an old index keeps what it was made with, and refuses others.
        load: what loads the model, when the first video has to be embedded.

    Raises:
        UserError: if a folder or the model is not what it should be, or another program is writing to the index.
    """
    if settings.ray is not None:
        check_ray()
    bad_before = {} if settings.bad_videos is None else read_bad(settings.bad_videos)
    found: dict[str, Found] = {}
    unread: list[str] = []
    roots = [os.path.abspath(folder) for folder in folders]
    for folder in roots:
        videos, closed = find_videos(Path(folder), settings.forget_empty)
        found = {**videos, **found}
        unread += closed
    if absent := bad_before.keys() - found.keys():
        what = f"{len(absent):,} of {len(bad_before):,} videos of --bad_videos {settings.bad_videos}"
        logger.warning("%s are in none of the folders, such as %s", what, min(absent))
    for folder in unread:
        logger.warning("the folder %s cannot be read: what was indexed of it is kept as it is", folder)

    maker = _Model(index_dir, model, load)
    with open_for_writing(index_dir, maker.for_new(settings)) as store:
        recorded = store.settings
        for name in sorted(given & set(CUT)):
            if float(recorded[name]) != getattr(settings, name):
                raise UserError(f"the index {index_dir} was made with --{name} {float(recorded[name]):g}: {SAME}")
        check_same(index_dir, recorded, model)
        for folder in roots:
            store.add_folder(folder)
        outcome = _forget(store, roots, found, unread)
        known = {video.path: video for video in store.videos()}
        folders = store.folders()  # one that holds another may have come
        names = {path: _name_of(path, folders) for path in {**known, **found}}
        store.rename({path: names[path] for path, video in known.items() if video.name != names[path]})
        todo = []
        for video in found.values():
            if video.problem is None and video.path in bad_before:
                video = replace(video, problem=bad_before[video.path])
            if _is_same(video, known.get(video.path), settings.retry_bad):
                outcome.same += 1
            else:
                todo.append(video)
                outcome.changed += video.path in known
                outcome.added += video.path not in known
        todo.sort(key=lambda video: video.path)
        store.set(done=0, total=len(todo))
        _embed_all(store, todo, names, maker, recorded, settings, outcome)
        there = {video.path: video.stamp for video in store.videos()}
        # what was begun for a folder that was not given this time is gone on with when it is
        remove_parts(
            index_dir,
            lambda video: not _is_in(video.path, roots) and is_there(video) and there.get(video.path) != video.stamp,
        )
        store.tidy()
        outcome.bad = {video.path: video.problem for video in store.videos() if video.problem is not None}
    return outcome


class _Model:
    """The model of an index, loaded when it is first needed."""

    def __init__(self, index_dir: Path, settings: ModelSettings, load: Callable[..., Run]):
        self.index_dir, self.settings, self._load = index_dir, settings, load
        self._run: Run | None = None

    def for_new(self, settings: IndexSettings) -> dict[str, Any]:
        """What a new index notes; nothing for one that is there."""
        if (self.index_dir / DATABASE).is_file():
            store = read_store_or_none(self.index_dir)
            if store is not None:
                store.close()
                return {}
        recorded = wanted_settings(self.settings)
        run = self._run = self._load(recorded, self.settings)
        check_searchable(run.model, "Take a run with")
        frames = {"max_frames": run.max_frames, "max_words": run.max_words}
        cut = {name: getattr(settings, name) for name in CUT}
        known = {"width": run.clip.output_width, "fingerprint": fingerprint(recorded, self.settings, run)}
        return {**recorded, **frames, **cut, **known}

    def check(self, recorded: dict[str, str]) -> None:
        """Refuse a run that is no longer the index's, where it is there: its checkpoint is read and no model loaded.

        Raises:
            UserError: saying so.
        """
        if recorded["run"] and Path(self.settings.run or recorded["run"]).exists():
            check_fingerprint(self.index_dir, recorded, self.settings, self._run)

    def get(self, recorded: dict[str, str]) -> Run:
        """The run, which is the one that the index was made with.

        Raises:
            UserError: if it is not.
        """
        if self._run is None:
            self._run = self._load(recorded, self.settings)
        check_fingerprint(self.index_dir, recorded, self.settings, self._run)
        return self._run


def read_store_or_none(folder: Path) -> Store | None:
    """An index, None where a writer was killed before it had made one."""
    if not (folder / DATABASE).stat().st_size:
        return None
    return read_store(folder)


def _is_same(video: Found, known: Video | None, retry_bad: bool) -> bool:
    """Whether there is nothing to do about a video."""
    if known is None or known.stamp != video.stamp:
        return False
    if video.problem is not None:
        return known.problem == video.problem
    return known.problem is None or not retry_bad


def _forget(store: Store, roots: list[str], found: dict[str, Found], unread: list[str]) -> Outcome:
    """Remove what is gone: from the folders given, and of others what is no longer there while the folder is."""
    gone = []
    mounted = [folder for folder in store.folders() if _is_mounted(folder)]
    for video in store.videos():
        if video.path in found or _is_in(video.path, unread):
            continue
        if _is_in(video.path, roots):
            gone.append(video.path)
            continue
        if _is_in(video.path, mounted) and not os.path.lexists(video.path):
            gone.append(video.path)
    store.remove(gone)
    return Outcome(gone=len(gone))


def _is_mounted(folder: str) -> bool:
    """Whether a folder shows what it holds: a disk that is not mounted, or cannot be read, has not lost its videos."""
    try:
        return bool(os.listdir(folder))
    except OSError:
        return False


def _is_in(path: str, folders: Iterable[str]) -> bool:
    return any(path.startswith(os.path.join(folder, "")) for folder in folders)


def _embed_all(
    store: Store,
    todo: list[Found],
    names: Mapping[str, str],
    maker: _Model,
    recorded: dict[str, str],
    settings: IndexSettings,
    outcome: Outcome,
) -> None:
    """Embed videos here or on a cluster; each is in the index before the next one is, in the order of the list."""
    for video in todo:
        if video.problem is not None:
            _add(store, video, names, video.problem)
    readable = [video for video in todo if video.problem is None]
    if not readable:
        maker.check(recorded)
        return
    if settings.ray is None:
        results = _embed_here(readable, maker.get(recorded), recorded, settings)
    else:
        recipe = Recipe.of(recorded, maker.settings, settings, store.folder)
        results = embed_on_cluster([Listed(video.path, video.stamp) for video in readable], recipe)
    with contextlib.closing(results):
        for video, part in zip(readable, results, strict=True):
            outcome.seconds += 0.0 if isinstance(part, str) else part.seconds
            _add(store, video, names, part)


def _embed_here(
    videos: list[Found], run: Run, recorded: dict[str, str], settings: IndexSettings
) -> Iterator[Part | str]:
    """What came of each video, in order."""
    cutting = Cutting(float(recorded["window"]), float(recorded["stride"]), run.max_frames)
    decoding = DecodingSettings(video_time_limit=settings.video_time_limit, decoder_errors=run.decoder_errors)
    # a long video takes longer than a short one: what is done is counted in bytes of the files
    sizes = [video.stamp.kilobytes for video in videos]
    begins = list(accumulate(sizes, initial=0))
    with Progress(begins[-1], "indexing", "kB", "kB") as progress:

        def seen(place: int, share: float) -> None:
            progress.update(max(0, begins[place] + int(sizes[place] * share) - progress.done))

        paths = [Path(video.path) for video in videos]
        for place, part in enumerate(embed_videos(run, paths, cutting, decoding, settings.batch_size, seen)):
            yield part
            progress.note(videos=f"{place + 1}/{len(videos)}")
            seen(place, 1.0)


def _add(store: Store, video: Found, names: Mapping[str, str], part: Part | str) -> None:
    """Put what came of a video into the index."""
    if isinstance(part, str):
        tqdm.write(f"bad: {video.path}: {part}", file=sys.stdout)
    store.add(video.path, names[video.path], video.stamp, part, done=store.progress()[0] + 1)
