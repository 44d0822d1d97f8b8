"""How far a long job has come: a bar on a terminal, and a line now and then where output goes to a file."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

INTERVAL = 60.0  # seconds between two lines
UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill: "1 h 23 min", "4 min 5 s", "12 s"."""
    rest, parts = round(seconds), []
    for name, size in UNITS:
        number, rest = divmod(rest, size)
        if number or parts or name == "s":
            parts.append(f"{number} {name}")
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"


def clock(seconds: float) -> str:
    """A time in a video: "1:02:03", "2:03", "0:03.5"."""
    minutes, rest = divmod(round(seconds * 10), 600)
    end = f"{rest / 10:02.0f}" if rest % 10 == 0 else f"{rest / 10:04.1f}"
    return f"{minutes // 60}:{minutes % 60:02}:{end}" if minutes >= 60 else f"{minutes}:{end}"


def say_on_stderr(line: str) -> None:
    """Where bars go, too."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts what is done of a job; to be entered.

    Carriage returns would fill a file with one long line, so a stream that is no terminal gets lines.
    """

    def __init__(
        self,
        total: int,
        what: str,
        unit: str,
        units: str,
        say: Callable[[str], None] = say_on_stderr,
        shown: bool = True,
        leave: bool = True,
        delay: float = 0.0,
    ):
        """Begin to count.

        Args:
            total: how much there is.
            what: is being done. unit, units: what is counted, one of them and several.
            say: takes the lines that come every `INTERVAL` seconds where stderr is no terminal.
            shown: neither a bar nor lines without it.
            leave: the bar where it is at the end.
            delay: seconds before a bar appears.
        """
        self.total, self.what, self.units = total, what, units
        self.done = 0
        self._say = say
        self._noted: dict[str, str] = {}
        # None: no bar where stderr is no terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, leave=leave, delay=delay, disable=None if shown else True)
        self._lines = shown and self._bar.disable
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def note(self, **values: object) -> None:
        """Show values beside the count from the next update on."""
        self._noted = {name: str(value) for name, value in values.items()}
        self._bar.set_postfix(self._noted, refresh=False)

    def update(self, number: int = 1) -> None:
        """Count some more as done."""
        self.done += number
        self._bar.update(number)
        now = time.monotonic()
        if self._lines and now - self._last >= INTERVAL and self.done < self.total:
            self._last = now
            left = (self.total - self.done) * (now - self._begin) / self.done
            noted = "".join(f", {name} {value}" for name, value in self._noted.items())
            self._say(f"{self.what}: {self.done:,} of {self.total:,} {self.units}{noted}, {duration(left)} left")
