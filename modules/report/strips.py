"""Strips of a video's frames with what belongs to them over them: maps, chosen patches, what changes in the gaps."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec, SubplotSpec
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from modules.report.page import (
    BLUE,
    LINE,
    MAP,
    MARGIN,
    SMALL_TYPE,
    TYPE,
    VERMILION,
    WIDTH,
    evenly,
    new_figure,
    ranges,
    styled,
    wrapped,
)

LABEL, BAR = 1.2, 0.72  # inches beside the frames: what a row is, and its colours
LEAST, MOST = 0.42, 1.3  # inches of a frame's side
GAP = 0.03  # inches between frames
LABEL_LINES, TITLE_LINES, UNIT_LINES = 6, 4, 2
ABOVE, NUMBERS = 0.5 * LINE, 2.1 * LINE  # inches: above a title, and of the frames' numbers below it
STRENGTH = 0.62  # of a map over a frame


@dataclass(frozen=True)
class Row:
    """A row of a strip: the frames as they are, or with something laid over them.

    Attributes:
        label: what it shows, beside it.
        maps: (n, G, G), not negative, for each frame; None for none.
        unit: what the maps measure.
        chosen: (n, G, G) bool, the patches to outline; None for none.
    """

    label: str
    maps: np.ndarray | None = None
    unit: str = ""
    chosen: np.ndarray | None = None


@dataclass(frozen=True)
class Strip:
    """A video with its rows.

    Attributes:
        title: above it.
        frames: (n, S, S, 3) uint8, as the models see them.
        rows: from top to bottom; the first carries the frames' numbers.
    """

    title: str
    frames: np.ndarray
    rows: Sequence[Row]


@styled
def draw_strips(strips: Sequence[Strip], width: float = WIDTH) -> Figure:
    """Strips one below the other, a colour scale a row.

    Where there is no room for all frames, evenly chosen ones are shown.

    Args:
        strips: at least one.
        width: of the figure, in inches.
    """
    room = width - LABEL - BAR - 2 * MARGIN
    columns = min(max(len(strip.frames) for strip in strips), max(1, int(room / LEAST)))
    side = min(room / columns, MOST)
    figure = new_figure(width, 1.0)
    titles = [_title(figure, strip, columns, width) for strip in strips]
    labels = [
        [wrapped(figure, row.label, LABEL - 0.1, LABEL_LINES, SMALL_TYPE) for row in strip.rows] for strip in strips
    ]
    heights = []
    for title, of_rows in zip(titles, labels, strict=True):
        heights.append(LINE * len(title) + ABOVE + NUMBERS)
        heights += [max(side, LINE * len(label)) for label in of_rows]
    figure.set_size_inches(width, sum(heights) + 2 * MARGIN)
    edges = {"left": MARGIN / width, "right": 1 - MARGIN / width}
    vertical = MARGIN / figure.get_figheight()
    grid = GridSpec(
        *(len(heights), columns + 2, figure),
        **{"width_ratios": [LABEL, *[room / columns] * columns, BAR], "height_ratios": heights},
        **{**edges, "bottom": vertical, "top": 1 - vertical, "wspace": 0, "hspace": 0},
    )
    at = 0
    for strip, title, of_rows in zip(strips, titles, labels, strict=True):
        _write(figure, grid[at, :], title, below=ABOVE / heights[at])
        shown = evenly(len(strip.frames), columns)
        for number, (row, label) in enumerate(zip(strip.rows, of_rows, strict=True)):
            at += 1
            _write(figure, grid[at, 0], label, size=SMALL_TYPE)
            _draw_row(figure, grid, at, strip, row, shown, numbered=number == 0)
        at += 1
    return figure


def _title(figure: Figure, strip: Strip, columns: int, width: float) -> list[str]:
    lines = wrapped(figure, strip.title, width - 2 * MARGIN, TITLE_LINES)
    return lines if len(strip.frames) <= columns else [*lines, f"{columns} of {len(strip.frames)} frames are shown"]


def _write(
    figure: Figure, cell: SubplotSpec, lines: Sequence[str], size: float = TYPE, below: float | None = None
) -> None:
    """Text at the left of a cell, in the middle of its height, or below so much of it."""
    axes = figure.add_subplot(cell)
    axes.set_axis_off()
    place, alignment = (0.5, "center") if below is None else (1 - below, "top")
    axes.text(0, place, "\n".join(lines), va=alignment, fontsize=size)


def _draw_row(
    figure: Figure, grid: GridSpec, at: int, strip: Strip, row: Row, shown: Sequence[int], numbered: bool
) -> None:
    scale = None if row.maps is None else Normalize(0, max(float(row.maps.max()), 1e-12))
    for column, frame in enumerate(shown):
        axes = figure.add_subplot(grid[at, 1 + column])
        if numbered:
            axes.set_title(f"{frame + 1}", fontsize=SMALL_TYPE, pad=2)
            if column == 0:
                axes.annotate(
                    *("sampled frame", (0, 1)),
                    **{"xycoords": "axes fraction", "xytext": (0, 2 + 1.4 * SMALL_TYPE), "fontsize": SMALL_TYPE},
                    textcoords="offset points",
                )
        draw_frame(axes, strip.frames[frame], None if row.maps is None else row.maps[frame], scale)
        if row.chosen is not None:
            outline(axes, row.chosen[frame], strip.frames.shape[1])
    if scale is not None:
        beside = figure.add_subplot(grid[at, len(grid.get_width_ratios()) - 1])
        beside.set_axis_off()
        colours = beside.inset_axes([0.07, 0.1, 0.12, 0.8])
        bar = figure.colorbar(ScalarMappable(scale, MAP), cax=colours, ticks=[0, scale.vmax])
        bar.ax.set_yticklabels(["0", f"{scale.vmax:.2g}"])
        bar.ax.tick_params(length=1.5, pad=1.5)
        bar.outline.set_linewidth(0.5)
        height = grid.get_height_ratios()[at]
        unit = "\n".join(wrapped(figure, row.unit, height - 2 * MARGIN, UNIT_LINES, SMALL_TYPE))
        beside.text(0.98, 0.5, unit, rotation=90, va="center", ha="right", ma="center", fontsize=SMALL_TYPE)


def draw_frame(axes: Axes, frame: np.ndarray, over: np.ndarray | None = None, scale: Normalize | None = None) -> None:
    """A frame, or in grey with a map (G, G) over it."""
    height, width = frame.shape[:2]
    extent = (0, width, height, 0)
    if over is None:
        axes.imshow(frame, extent=extent)
    else:
        grey = frame.astype(float) @ [0.299, 0.587, 0.114]
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.imshow(over, cmap=MAP, norm=scale, alpha=STRENGTH, extent=extent, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlim(-width * GAP, width * (1 + GAP))
    axes.set_ylim(height * (1 + GAP), -height * GAP)
    axes.spines[:].set_visible(False)


def outline(axes: Axes, chosen: np.ndarray, size: int) -> None:
    """Red outlines of patches (G, G) bool, with white beside the red: light and dark tell them apart in grey, too."""
    patch = size / len(chosen)
    for row, column in np.argwhere(chosen):
        axes.add_patch(
            Rectangle(
                *((column * patch, row * patch), patch, patch),
                **{"fill": False, "edgecolor": VERMILION, "linewidth": 0.8},
                path_effects=[withStroke(linewidth=1.6, foreground="white")],
            )
        )


@dataclass(frozen=True)
class Timeline:
    """What changes in a video.

    Attributes:
        title: above it.
        frames: (n, S, S, 3) uint8.
        groups: the frames, from 1, that were merged to each of what there are gaps between; each alone by default.
        variation: W^t of each gap, 0 to 1.
        tokens: N^t of each gap, int.
        slots: the most tokens that a gap can have.
    """

    title: str
    frames: np.ndarray
    variation: np.ndarray
    tokens: np.ndarray
    slots: int
    groups: Sequence[Sequence[int]] = field(default_factory=tuple)


@styled
def draw_timelines(timelines: Sequence[Timeline], width: float = WIDTH) -> Figure:
    """Strips of frames, below each the frame variation of its gaps as a curve and their temporal prompts as bars.

    Where there is no room for all frames, some are shown, each in the middle of the part of the clip that it is of.

    Args:
        timelines: at least one.
        width: of the figure, in inches.
    """
    figure = new_figure(width, 1.0)
    left, right = 0.62, 0.6
    room = width - left - right
    titles = [wrapped(figure, line.title, width - 2 * MARGIN, TITLE_LINES) for line in timelines]
    shown = [min(len(line.frames), int(room / LEAST)) for line in timelines]
    sides = [min(room / count, MOST) for count in shown]
    heights = []
    for title, side in zip(titles, sides, strict=True):
        heights += [LINE * (len(title) + 0.6), side, 1.1, 3.2 * LINE]
    figure.set_size_inches(width, sum(heights) + 2 * MARGIN)
    vertical = MARGIN / figure.get_figheight()
    edges = {"left": left / width, "right": 1 - right / width, "bottom": vertical, "top": 1 - vertical}
    grid = GridSpec(len(heights), 1, figure, height_ratios=heights, hspace=0, **edges)
    for at, (line, title) in enumerate(zip(timelines, titles, strict=True)):
        above = figure.add_subplot(grid[4 * at])
        above.set_axis_off()
        above.annotate(
            *("\n".join(title), (0, 1)),
            **{"xycoords": "axes fraction", "xytext": ((MARGIN - left) * 72, 0), "textcoords": "offset points"},
            va="top",
        )
        strip = figure.add_subplot(grid[4 * at + 1])
        _draw_strip(strip, line, shown[at], room / sides[at])
        _draw_gaps(figure.add_subplot(grid[4 * at + 2], sharex=strip), line, shown[at])
    return figure


def _draw_strip(axes: Axes, line: Timeline, shown: int, room: float) -> None:
    """So many of the frames, each above its number, on axes with room for `room` of them."""
    count = len(line.frames)
    wide = count / shown  # frames that one is shown for
    for place in range(shown):
        left = 0.5 + place * wide
        extent = (left + GAP * wide, left + (1 - GAP) * wide, 2 * GAP, 1)
        axes.imshow(line.frames[int(left + wide / 2 - 0.5)], extent=extent, aspect="auto")
    middle = (1 + count) / 2
    axes.set_xlim(middle - room * wide / 2, middle + room * wide / 2)
    axes.set_ylim(0, 1)
    axes.set_axis_off()


def _draw_gaps(axes: Axes, line: Timeline, shown: int) -> None:
    groups = line.groups or [(number,) for number in range(1, len(line.frames) + 1)]
    places = np.array([group[-1] + 0.5 for group in groups[:-1]])
    notes = [f"{shown} of {len(line.frames)} shown"] if shown < len(line.frames) else []
    notes += [f"{ranges(groups)} merged"] if len(groups) < len(line.frames) else []
    axes.set_xlabel("sampled frame" + (f" ({'; '.join(notes)})" if notes else ""))
    room = int(72 * axes.figure.get_figwidth() / (3 * SMALL_TYPE))  # numbers that fit side by side
    axes.set_xticks([1 + at for at in evenly(len(line.frames), room)])
    axes.set_ylabel("frame\nvariation $W^t$", color=BLUE, parse_math=True)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.5, 1])
    if not len(places):
        axes.text(0.5, 0.5, "one frame: there is no gap", transform=axes.transAxes, ha="center", va="center")
        return
    bars = axes.twinx()
    bars.bar(places, line.tokens, width=0.5, color="0.8", edgecolor="0.4", linewidth=0.5)
    bars.set_ylim(0, 1.08 * max(line.slots, 1))
    bars.set_ylabel("temporal\nprompts $N^t$", color="0.35", parse_math=True)
    bars.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_zorder(bars.get_zorder() + 1)  # the curve before the bars
    axes.patch.set_visible(False)
    axes.plot(places, line.variation, "o-", color=BLUE, markersize=3, linewidth=1)
