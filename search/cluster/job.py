"""Parts are handed to workers until each is finished, and merged in the order of the list."""

import contextlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import UserError
from common.progress import Progress
from search.cluster.parts import Listed, ListPart, PartFiles, cut
from search.store import Part

logger = logging.getLogger("stop")

TRIES = 2  # of a part whose worker dies or fails, and then of each of its videos alone
HOPELESS = 5  # parts that failed while none was finished
STEP = 1.0  # seconds that news of the workers is waited for at a time


@dataclass(frozen=True)
class Lost:
    """Of a part whose worker died or failed: why, to follow "because"."""

    reason: str


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
