"""What a run gets wrong, in pictures: the queries with the worst ranks, the classes that are taken for each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.patches import Rectangle

from modules.report.page import GREEN, LINE, MARGIN, SMALL_TYPE, WIDTH, new_figure, styled, wrapped

LABEL, GAP = 1.35, 0.05  # inches: beside the pictures, between them
CAPTION_LINES, LABEL_LINES = 2, 8


@dataclass(frozen=True)
class Picture:
    """A video in a row.

    Attributes:
        frame: (H, W, 3) uint8.
        caption: below it.
        right: whether it is the one that was looked for.
    """

    frame: np.ndarray
    caption: str
    right: bool = False


@dataclass(frozen=True)
class Mistake:
    """A row.

    Attributes:
        label: what was asked and what came of it, beside the pictures.
        pictures: from left to right.
    """

    label: str
    pictures: Sequence[Picture]


@styled
def draw_mistakes(title: str, headings: Sequence[str], mistakes: Sequence[Mistake], width: float = WIDTH) -> Figure:
    """A row a mistake; the video that was looked for has a thick frame, and a blank behind it.

    Args:
        title: above all.
        headings: of the columns, the label's first; an empty one where the one before goes on.
        mistakes: at least one; of at most as many pictures as there are headings but the first.
        width: of the figure, in inches.
    """
    columns = len(headings) - 1
    blank = 0.12 if any(picture.right for mistake in mistakes for picture in mistake.pictures) else 0.0
    side = (width - LABEL - blank - 2 * MARGIN) / columns
    figure = new_figure(width, 1.0)
    lines = wrapped(figure, title, width - 2 * MARGIN, 3)
    labels = [wrapped(figure, mistake.label, LABEL - 0.1, LABEL_LINES, SMALL_TYPE) for mistake in mistakes]
    below = CAPTION_LINES * LINE
    heights = [LINE * (len(lines) + 0.5), 1.2 * LINE, *(max(side + below, LINE * len(label)) for label in labels)]
    figure.set_size_inches(width, sum(heights) + 2 * MARGIN)
    vertical = MARGIN / figure.get_figheight()
    grid = GridSpec(
        *(len(heights), columns + 2, figure),
        **{"width_ratios": [LABEL, side, blank, *[side] * (columns - 1)], "height_ratios": heights},
        **{"left": MARGIN / width, "right": 1 - MARGIN / width, "bottom": vertical, "top": 1 - vertical},
        **{"wspace": 0, "hspace": 0},
    )
    places = [0, 1, *range(3, columns + 2)]
    _write(figure, grid[0, :], lines)
    for place, heading in zip(places, headings, strict=True):
        if heading:
            _write(figure, grid[1, place], [heading])
    for row, (mistake, label) in enumerate(zip(mistakes, labels, strict=True), 2):
        _write(figure, grid[row, 0], label, SMALL_TYPE)
        for place, picture in zip(places[1:], mistake.pictures, strict=False):
            _draw_picture(figure, grid[row, place], picture, side, heights[row])
    return figure


def _write(figure: Figure, cell: SubplotSpec, lines: Sequence[str], size: float | None = None) -> None:
    axes = figure.add_subplot(cell)
    axes.set_axis_off()
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=size)


def _draw_picture(figure: Figure, cell: SubplotSpec, picture: Picture, side: float, height: float) -> None:
    """A picture at the top of its cell, as large as there is room for beside its neighbour, and its caption."""
    axes = figure.add_subplot(cell)
    axes.set_axis_off()
    square = axes.inset_axes([0, 1 - (side - GAP) / height, 1 - GAP / side, (side - GAP) / height])
    square.imshow(picture.frame)
    square.set_anchor("NW")
    square.set_axis_off()
    if picture.right:
        rows, columns = picture.frame.shape[:2]
        edge = Rectangle((-0.5, -0.5), columns, rows, fill=False, edgecolor=GREEN, linewidth=2.5, clip_on=False)
        square.add_patch(edge)
    caption = wrapped(figure, picture.caption, side - GAP, CAPTION_LINES, SMALL_TYPE)
    axes.text(0, 1 - side / height, "\n".join(caption), va="top", fontsize=SMALL_TYPE)
