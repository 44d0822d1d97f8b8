"""Answers to queries from an index, for the command line and the page alike."""

import math
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from search.quantised import LEAST, Quantised, read_quantised
from search.scoring import CANDIDATES, MIN_CANDIDATES, Judge, Scale, combine, find_moments, similarities
from search.settings import JudgeSettings, MatchingSettings
from search.store import Rows, Stamp, Store, Video, Window, read_store

GENERIC = Path(__file__).with_name("generic.txt")
KEPT_TEXTS = 256  # embeddings of texts that are remembered
RELOAD_SHARE = 0.05  # of the time, at most, goes into reading an index anew that grows
SAMPLE = 32_768  # windows by which it is judged what is usual, where not all are compared
GENERIC_CANDIDATES = 500  # windows looked at for the best one of each generic text
FEW = 131_072  # windows that are allowed, up to which all of them are compared exactly

EmbedTexts = Callable[[Sequence[str]], np.ndarray]


class QueryError(UserError):
    """A query that cannot be answered, whatever the index."""


@dataclass(frozen=True)
class Query:
    """What is looked for.

    Attributes:
        text: "" for none. unlike: what it should not be, "" for nothing.
        like: the number of a window to be like; None for none.
        folder: the start of the names or paths of videos; "" for all.
        min_seconds, max_seconds: how long the videos are.
        top: moments at most. all: also where nothing stands out.
        by_path: `folder` may also be the start of paths.
    """

    text: str = ""
    unlike: str = ""
    like: int | None = None
    folder: str = ""
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    top: int = 10
    all: bool = False
    by_path: bool = False


@dataclass(frozen=True)
class _Loaded:
    """An index as it was at one time.

    quantised: None where every window is compared. sample: (s, E) float32 of the windows, where there is one.
    """

    change: int
    rows: Rows
    embeddings: np.ndarray
    videos: dict[int, Video]
    judge: Judge | None
    quantised: Quantised | None
    sample: np.ndarray | None


def read_generic(path: Path | None) -> list[str]:
    """The generic texts of a file, a line each.

    Raises:
        UserError: if it cannot be read or has fewer than two.
    """
    path = path or GENERIC
    try:
        texts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise UserError(
            f"--generic_texts {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    if len(texts) < 2:
        raise UserError(f"--generic_texts {path} has fewer than two lines: their spread could not be told")
    return texts


def state_of(video: Video) -> str:
    """What became of a video's file since it was indexed: "there", "changed" or "gone"."""
    try:
        return "there" if Stamp.of(os.stat(video.path)) == video.stamp else "changed"
    except OSError:
        return "gone"


class Searcher:
    """An index that answers queries; threads may share it."""

    def __init__(
        self, index_dir: Path, embed_texts: EmbedTexts, settings: JudgeSettings, index: str = MatchingSettings.index
    ):
        """Open an index.

        Args:
            index_dir: of the index.
            embed_texts: (M texts) -> (M, E) unit length, of the model that the index was made with.
            settings: of the judge.
            index: "exact", or "faiss" for candidates of the quantised index.

        Raises:
            UserError: if there is no index, it has no quantised one where that is wanted, or the generic texts cannot
                be read.
        """
        self.store: Store = read_store(index_dir)
        self._embed_texts, self._settings, self._index = embed_texts, settings, index
        self._generic = embed_texts(read_generic(settings.generic_texts))
        self._texts: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.RLock()  # of the store, the model and what is remembered
        self._loaded: _Loaded | None = None
        self._load_again_at = 0.0
        loaded = self.load()
        if index == "faiss" and loaded.quantised is None and len(loaded.rows.rows) >= LEAST:
            raise UserError(f"{index_dir} has not been quantised: give --index faiss to the command index, too")

    def load(self) -> _Loaded:
        """The index as it is; one that grows is read again now and then."""
        with self._lock:
            began = time.monotonic()
            loaded = self._loaded
            if loaded is not None and loaded.change == self.store.change:
                return loaded
            if loaded is not None and began < self._load_again_at and self.store.is_growing():
                return loaded
            with self.store.reading():
                change = self.store.change
                rows, embeddings = self.store.rows(), self.store.embeddings()
                videos = {video.id: video for video in self.store.videos()}
                quantised = None
                if self._index == "faiss":
                    quantised = read_quantised(self.store, loaded and loaded.quantised)
            judge, judging, sample = None, rows.rows, None
            if quantised is not None:
                judging = rows.rows[quantised.candidates(self._generic, GENERIC_CANDIDATES, rows, neighbours=0)]
                sample = _sample(embeddings, rows.rows)
            if len(judging):
                judge = Judge.of(embeddings, judging, self._generic, self._settings.threshold)
            self._loaded = _Loaded(change, rows, embeddings, videos, judge, quantised, sample)
            now = time.monotonic()
            self._load_again_at = now + (now - began) / RELOAD_SHARE
            return self._loaded

    def text(self, text: str) -> np.ndarray:
        """(E,) embedding of a text."""
        with self._lock:
            if text not in self._texts:
                self._texts[text] = self._embed_texts([text])[0]
                if len(self._texts) > KEPT_TEXTS:
                    self._texts.popitem(last=False)
            self._texts.move_to_end(text)
            return self._texts[text]

    def find_window(self, place: str) -> int:
        """The number of the window at VIDEO@SECONDS, VIDEO the end of a video's name or path.

        Raises:
            UserError: if there is none, or more than one video of that name.
        """
        name, at, seconds = place.rpartition("@")
        try:
            time_wanted = float(seconds)
        except ValueError:
            time_wanted = math.nan
        if not at or not name or not math.isfinite(time_wanted):
            raise UserError(f"--like {place}: give a video and a time in it, such as holiday.mp4@83.5")
        with self._lock, self.store.reading():
            videos = [video for video in self.store.videos() if _ends_with(video, name)]
            if len(videos) != 1:
                found = "no video" if not videos else f"{len(videos)} videos, such as {videos[0].path}"
                raise UserError(f"--like {place}: the index has {found} of that name; see info for those it has")
            if videos[0].problem is not None:
                raise UserError(f"--like {place}: the video is a bad one: {videos[0].problem}")
            if not 0 <= time_wanted <= videos[0].seconds:
                raise UserError(f"--like {place}: the video has {videos[0].seconds:g} seconds")
            return self.store.window_at(videos[0].id, time_wanted).id

    def answer(self, query: Query) -> dict[str, Any]:
        """The moments for a query, as JSON has them; docs/search.md describes it.

        Raises:
            QueryError: if the query asks for nothing, or to be like a window that is not there.
            UserError: if the index is not whole.
        """
        if not query.text and query.like is None:
            raise QueryError("give a text, or a moment to be like")
        loaded = self.load()
        asked = {"text": query.text, "not": query.unlike, "like": query.like, "folder": query.folder}
        growing, (done, total) = self.growth()
        answer = {"query": asked, "windows": len(loaded.rows.rows), "growing": growing, "done": done, "total": total}
        vectors = [self.text(query.text)] if query.text else []
        if query.like is not None:
            vectors.append(self._window_vector(query.like, loaded))
            asked["like_file"], asked["like_from"] = self._place_of(query.like, loaded)
        wanted = len(vectors)
        vectors += [self.text(query.unlike)] if query.unlike else []
        if not len(loaded.rows.rows):
            return {**answer, "considered": 0, "stands_out": False, "excess": None, "moments": []}
        queries, allowed, rows, scale = np.stack(vectors), self._allowed(query, loaded), loaded.rows, None
        answer["considered"] = answer["windows"] if allowed is None else int(allowed.sum())
        if loaded.quantised is not None:
            scale = Scale.of(loaded.sample @ queries.T)
            places = _candidates(loaded, queries * scale.weights[:, None], wanted, allowed, query.top)
            rows, allowed = rows.take(places), None if allowed is None else allowed[places]
        found = similarities(loaded.embeddings, rows.rows, queries)  # (n, Q)
        scores = combine(found, wanted, scale or Scale.of(found))
        if query.like is not None:
            allowed = _without(allowed, rows, loaded.rows, query.like)
        moments = find_moments(scores, rows, allowed, query.top)
        excess = None
        if query.text and moments:
            excess = loaded.judge.excess(float(found[moments[0].best, 0]))
        # of what is like a moment nothing is known that texts could judge
        stands_out = bool(moments) and (excess is None or excess >= loaded.judge.threshold)
        shown = moments if stands_out or query.all else []
        listed = [self._describe(moment, float(found[moment.best, 0]), rows, loaded) for moment in shown]
        rounded = None if excess is None else round(excess, 2)
        return {**answer, "stands_out": stands_out, "excess": rounded, "moments": listed}

    def growth(self) -> tuple[bool, tuple[int, int]]:
        """Whether a program is adding to the index; and how many videos it has done of how many."""
        with self._lock:
            return self.store.is_growing(), self.store.progress()

    def video(self, number: int) -> Video | None:
        """A video by its number."""
        with self._lock:
            return self.store.video(number)

    def window(self, number: int) -> Window | None:
        """A window by its number."""
        with self._lock:
            return self.store.window(number)

    def picture(self, number: int) -> bytes | None:
        """A window's middle frame as JPEG; None if there is no such window.

        Raises:
            OSError: if the index is not whole.
        """
        with self._lock, self.store.reading():
            window = self.store.window(number)
            return window and self.store.picture(window)

    def folders(self) -> list[str]:
        """The folders of the videos, as their names have them."""
        names = {video.name for video in self.load().videos.values()}
        return sorted({name[:at] for name in names for at, letter in enumerate(name) if letter == "/"})

    def _window_vector(self, number: int, loaded: _Loaded) -> np.ndarray:
        places = np.flatnonzero(loaded.rows.windows == number)
        if not len(places):
            raise QueryError(f"the index has no window {number} any more")
        return np.asarray(loaded.embeddings[loaded.rows.rows[places[0]]], np.float32)

    def _place_of(self, number: int, loaded: _Loaded) -> tuple[str, float]:
        """The video's name and the start of a window that is there."""
        place = int(np.flatnonzero(loaded.rows.windows == number)[0])
        return loaded.videos[int(loaded.rows.videos[place])].name, round(float(loaded.rows.starts[place]), 2)

    def _allowed(self, query: Query, loaded: _Loaded) -> np.ndarray | None:
        if not query.folder and query.min_seconds <= 0 and query.max_seconds == math.inf:
            return None
        chosen = [
            video.id
            for video in loaded.videos.values()
            if video.problem is None
            and query.min_seconds <= video.seconds <= query.max_seconds
            and (not query.folder or _is_below(video, query))
        ]
        return np.isin(loaded.rows.videos, chosen)

    def _describe(self, moment: Any, similarity: float, rows: Rows, loaded: _Loaded) -> dict[str, Any]:
        video = loaded.videos[int(rows.videos[moment.best])]
        return {
            "score": round(moment.score, 2),
            "similarity": round(similarity, 4),
            "video": video.id,
            "file": video.name,
            "path": video.path,
            "seconds": video.seconds,
            "from": round(float(rows.starts[moment.first]), 2),
            "to": round(float(rows.ends[moment.last]), 2),
            "window": int(rows.windows[moment.best]),
            "first_window": int(rows.windows[moment.first]),
            "state": state_of(video),
        }


def _ends_with(video: Video, name: str) -> bool:
    wanted = os.path.abspath(name)
    return video.path == wanted or f"/{video.name}".endswith(f"/{name}")


def _is_below(video: Video, query: Query) -> bool:
    """Whether a video lies in the folder of a query, which is named from the indexed folder on or by its path."""
    if video.name.startswith(query.folder.rstrip("/") + "/"):
        return True
    return query.by_path and video.path.startswith(os.path.abspath(query.folder) + "/")


def _sample(embeddings: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(s, E) float32: some windows of all."""
    chosen = rows if len(rows) <= SAMPLE else np.random.default_rng(0).choice(rows, SAMPLE, replace=False)
    return embeddings[np.sort(chosen)].astype(np.float32)


def _candidates(loaded: _Loaded, queries: np.ndarray, wanted: int, allowed: np.ndarray | None, top: int) -> np.ndarray:
    """Places of the windows that are compared exactly.

    Args:
        queries: (Q, E), weighted as in the score; the first `wanted` ones for what is wanted, the others for what not.
        allowed: (n,) bool, the windows that may be found; None for all.
        top: moments that are wanted.
    """
    share = 1.0
    if allowed is not None:
        all_allowed = np.flatnonzero(allowed)
        if len(all_allowed) <= FEW:
            return all_allowed
        share = len(all_allowed) / len(allowed)
    # a score is high where what is wanted is; and, where that is less so, what is not wanted is low
    both = np.stack([queries[:wanted].sum(axis=0), queries[:wanted].sum(axis=0) - queries[wanted:].sum(axis=0)])
    count = max(CANDIDATES * top, MIN_CANDIDATES)
    places = loaded.quantised.candidates(both[: 1 + (len(queries) > wanted)], int(count / share), loaded.rows)
    if allowed is None:
        return places
    places = places[allowed[places]]
    return places if len(places) >= count else all_allowed  # what is allowed is unlike the query


def _without(allowed: np.ndarray | None, rows: Rows, all_rows: Rows, number: int) -> np.ndarray:
    """Those of the rows that may be found, but not those that overlap a window, which is one of all rows."""
    place = int(np.flatnonzero(all_rows.windows == number)[0])
    same = rows.videos == all_rows.videos[place]
    overlaps = same & (rows.starts < all_rows.ends[place]) & (rows.ends > all_rows.starts[place])
    return ~overlaps if allowed is None else allowed & ~overlaps
