"""The picture of the study of merged frames: R@1 against seconds of a training step, a panel a level.

Families of points differ in marker and in how light they are, so that print in grey and colour-blind readers can tell
them apart; each point is also labelled, where the label covers neither another nor a point.
"""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.errors import UserError
from scripts.benchmark.model import FLOOR
from scripts.studies.merging_curve import COSTS, POINTS, accuracy, ratio_of
from scripts.studies.runner import FRAMES, LEVELS, runs_of

# marker, size in points and title of each; cividis is as light in grey as in colour
FAMILIES = {
    "frozen": ("X", 8, "frozen CLIP (forward and gradient of its input)"),
    "unmerged": ("*", 13, "STOP's defaults: 8 frames, unmerged"),
    "fewer": ("s", 7, "fewer frames, unmerged"),
    "prompted": ("^", 8, "prompted before these layers alone"),
    "merged": ("o", 7, "frames merged before these layers"),
    "both": ("v", 8, "prompted and merged before these layers"),
    "twice": ("D", 7, "16 frames, merged before these layers"),
}
# dark to light
COLOURS = {name: colormaps["cividis"](at / (len(FAMILIES) - 1)) for at, name in enumerate(FAMILIES)}
SIZE, DPI = (10.5, 5.6), 110  # inches, pixels an inch
FONT, GAP = 7.5, 3.0  # of labels in points; pixels between a label and anything else
ANGLES, RINGS = 32, 40  # places that are tried for a label

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Plotted:
    """A point of a panel.

    Attributes:
        label, family: see `Point`.
        seconds: of a step, over those of the unmerged frames.
        accuracy: R@1, mean over seeds. error: its standard error, 0 of one seed.
    """

    label: str
    family: str
    seconds: float
    accuracy: float
    error: float = 0.0


def plotted(record: dict[str, Any], level: str) -> list[Plotted]:
    """The points of a panel that have a run and have been timed."""
    found = []
    floor, frozen = ratio_of(record, FLOOR), runs_of(record, level, "zero-shot", FRAMES)
    if frozen and floor is not None:
        found.append(Plotted("frozen CLIP", "frozen", floor, frozen[0]["metrics"]["t2v_R1"]))
    for point in POINTS:
        seconds, values = ratio_of(record, point.cost_key), list(accuracy(record, level, point).values())
        if values and seconds is not None:
            error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
            found.append(Plotted(point.label, point.family, seconds, fmean(values), error))
    return found


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share an area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def grown(box: Box, by: float) -> Box:
    """A box with a margin."""
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def place_labels(
    anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], bounds: Box
) -> list[Box]:
    """Put a label near each anchor, inside the bounds, where it covers no other label and nothing that is taken.

    Args:
        anchors: of the labels, which are placed one after the other.
        sizes: width and height of each.
        taken: what no label may cover.
        bounds: that no label may leave.

    Returns:
        The labels' boxes. Where there is no room for one it stands in the nearest place that covers least.
    """
    placed: list[Box] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        obstacles = [*taken, *placed]
        best, least = None, math.inf
        for ring in range(RINGS):
            for turn in range(ANGLES):
                angle = 2 * math.pi * turn / ANGLES
                # its nearest corner or side stands on the ring
                reach = 9 + 5 * ring
                centre_x = x + math.cos(angle) * (reach + width / 2)
                centre_y = y + math.sin(angle) * (reach + height / 2)
                box = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
                outside = box[0] < bounds[0] or box[1] < bounds[1] or box[2] > bounds[2] or box[3] > bounds[3]
                covered = math.inf if outside else sum(overlap(grown(box, GAP), other) for other in obstacles)
                if best is None or covered < least:
                    best, least = box, covered
                if least == 0:
                    break
            if least == 0:
                break
        placed.append(best)
    return placed


def draw_panel(axes: Axes, level: str, points: Sequence[Plotted], seconds: tuple[float, float]) -> None:
    """Markers, standard errors and the line of unmerged frames; labels come when the panel has its place.

    seconds: from where to where the panel reaches.
    """
    axes.set_title(f"level “{level}”", fontsize=10)
    unmerged = sorted((p.seconds, p.accuracy) for p in points if p.family in ("unmerged", "fewer"))
    if len(unmerged) > 1:
        axes.plot(*zip(*unmerged, strict=True), color="0.6", linewidth=0.8, zorder=1)
    for point in points:
        marker, size, _ = FAMILIES[point.family]
        axes.errorbar(
            *(point.seconds, point.accuracy, point.error or None),
            **{"fmt": marker, "markersize": size, "color": COLOURS[point.family]},
            **{"markeredgecolor": "black", "markeredgewidth": 0.7, "ecolor": "0.35", "elinewidth": 0.9, "capsize": 2},
        )
    axes.set_xlabel("seconds of a training step, relative to 8 frames unmerged", fontsize=9)
    axes.set_ylabel("text→video R@1, %", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    top = max((point.accuracy + point.error for point in points), default=1.0)
    axes.set_ylim(-0.03 * max(top, 1.0), 1.15 * max(top, 1.0))
    axes.set_xlim(*seconds)


def label_panel(axes: Axes, points: Sequence[Plotted]) -> None:
    """Label the points of a panel that has its place."""
    figure = axes.figure
    renderer = figure.canvas.get_renderer()
    places = [(point.seconds, point.accuracy) for point in points]
    anchors = [tuple(axes.transData.transform(place)) for place in places]
    sizes, taken = [], []
    for point, (x, y) in zip(points, anchors, strict=True):
        text = figure.text(0, 0, point.label, fontsize=FONT)
        extent = text.get_window_extent(renderer)
        sizes.append((extent.width, extent.height))
        text.remove()
        half = FAMILIES[point.family][1] * DPI / 72 / 2
        taken.append((x - half, y - half, x + half, y + half))
        bottom, top = (
            axes.transData.transform((point.seconds, point.accuracy + sign * point.error))[1] for sign in (-1, 1)
        )
        taken.append((x - 3, bottom - 1, x + 3, top + 1))
    # those in a crowd first, as long as there is room beside them
    crowd = [sum(math.dist(one, other) < 80 for other in anchors) for one in anchors]
    order = sorted(range(len(points)), key=lambda at: -crowd[at])
    boxes = place_labels(
        [anchors[at] for at in order], [sizes[at] for at in order], taken, tuple(axes.get_window_extent().extents)
    )
    for at, box in zip(order, boxes, strict=True):
        x, y = anchors[at]
        nearest = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if math.dist(nearest, anchors[at]) > 12:  # too far to be seen as its own
            axes.annotate(
                "",
                *(places[at], nearest),
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "linewidth": 0.5, "color": "0.5", "shrinkA": 0, "shrinkB": 3},
                zorder=1.5,
            )
        axes.annotate(
            *(points[at].label, places[at]),
            xytext=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
            **{"textcoords": "figure pixels", "ha": "center", "va": "center", "fontsize": FONT},
        )


def draw(record: dict[str, Any]) -> Figure:
    """The figure of what a record holds.

    Raises:
        UserError: if it holds no point that has both been trained and been timed.
    """
    panels = {level: plotted(record, level) for level in LEVELS}
    if not any(panels.values()):
        raise UserError("nothing to draw: no point has both a run and its seconds, which --time measures")
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(LEVELS))
    timed = record[COSTS]["ratio"].values()  # so that the panels reach as far as they will with all points
    seconds = min(timed) - 0.15, max(timed) + 0.15
    for axes, (level, points) in zip(all_axes, panels.items(), strict=True):
        draw_panel(axes, level, points, seconds)
    present = {point.family for points in panels.values() for point in points}
    keys = [
        Line2D([], [], marker=marker, markersize=0.8 * size, color=COLOURS[name], linestyle="", label=title)
        for name, (marker, size, title) in FAMILIES.items()
        if name in present
    ]
    for key in keys:
        key.set(markeredgecolor="black", markeredgewidth=0.7)
    figure.legend(handles=keys, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # the panels stay where they are from here on
    for axes, points in zip(all_axes, panels.values(), strict=True):
        label_panel(axes, points)
    return figure


def digest(record: dict[str, Any]) -> str:
    """What tells whether a picture is of what a record holds: it stands in the file as ``Source``."""
    shown = [[asdict(point) for point in plotted(record, level)] for level in LEVELS]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def picture(record: dict[str, Any]) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    draw(record).savefig(buffer, format="png", dpi=DPI, metadata={"Source": digest(record), "Software": None})
    return buffer.getvalue()
