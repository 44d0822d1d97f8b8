"""What all pictures share: their size on paper, their type, their colours, and how they are written to a file.

A picture is drawn at the width at which it is printed, so that its type is as large as said here. Its colours differ in
lightness as much as in hue: they survive print in grey, and readers who see fewer colours.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from common.errors import UserError

P = ParamSpec("P")

WIDTH = 7.0  # inches: the text width of a paper in two columns
TYPE, SMALL_TYPE = 7.0, 6.0  # points
LINE = 1.35 * TYPE / 72  # inches from line to line
MARGIN = 0.06  # inches
DPI = 200  # dots an inch of what is not drawn in vectors
MAP = "cividis"  # of maps: as light in grey as in colour
# of Okabe and Ito's palette
BLUE, GREEN, VERMILION = "#0072B2", "#009E73", "#D55E00"
ELLIPSIS = "…"
STYLE = {
    "font.size": TYPE,
    "axes.titlesize": TYPE,
    "axes.labelsize": TYPE,
    "xtick.labelsize": SMALL_TYPE,
    "ytick.labelsize": SMALL_TYPE,
    "legend.fontsize": SMALL_TYPE,
    "axes.linewidth": 0.5,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "text.parse_math": False,  # a dollar in a caption is a dollar
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """What draws a figure, in the style of this module."""

    @wraps(draw)
    def draw_styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_styled


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def text_width(figure: Figure, text: str, size: float = TYPE) -> float:
    """How wide a line of text is, in inches; size: in points."""
    renderer = figure.canvas.get_renderer()
    return renderer.get_text_width_height_descent(text, FontProperties(size=size), False)[0] / figure.dpi


def wrapped(figure: Figure, text: str, width: float, max_lines: int, size: float = TYPE) -> list[str]:
    """A text in lines that fit, broken between words where that is possible.

    Args:
        figure: that it will stand in.
        text: with line breaks that are kept.
        width: in inches.
        max_lines: what does not fit in as many is left out, which an ellipsis says.
        size: of the type in points.
    """

    def fits(line: str) -> bool:
        return text_width(figure, line, size) <= width

    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if fits(f"{line} {word}".strip()):
                line = f"{line} {word}".strip()
                continue
            if line:
                lines.append(line)
            while not fits(word):  # a path, for one
                cut = max(1, bisect_left(range(len(word)), True, key=lambda at: not fits(word[:at])) - 1)
                lines.append(word[:cut])
                word = word[cut:]
            line = word
        lines.append(line)
    if len(lines) <= max_lines:
        return lines
    last = lines[max_lines - 1]
    while last and not fits(last + ELLIPSIS):
        last = last[:-1]
    return [*lines[: max_lines - 1], last + ELLIPSIS]


def evenly(count: int, wanted: int) -> list[int]:
    """At most so many of 0 … count − 1, first and last among them where there are two."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(at * (count - 1) / (wanted - 1)) for at in range(wanted)]


def ranges(groups: Iterable[Sequence[int]]) -> str:
    """Groups of neighbours in words: (1, 2), (3,) → "1–2, 3"."""
    return ", ".join(f"{group[0]}–{group[-1]}" if len(group) > 1 else f"{group[0]}" for group in groups)


def in_digits(value: float, digits: int = 3) -> str:
    """A number with a minus sign that is as long as a plus."""
    return f"{value:.{digits}f}".replace("-", "−")


def write(figure: Figure, path: Path) -> None:
    """Write a figure, in the form that the file's name says.

    Raises:
        UserError: if there is no such form, or the file cannot be written.
    """
    forms = figure.canvas.get_supported_filetypes()
    form = path.suffix.removeprefix(".").lower()
    if form not in forms:
        raise UserError(f"--output {path}: give a name that ends with one of .{', .'.join(sorted(forms))}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # the same figure is the same file
        figure.savefig(path, dpi=DPI, metadata={"Software": None} if form == "png" else None)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error
