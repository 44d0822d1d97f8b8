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
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.errors import UserError
from scripts.benchmark.model import FLOOR
from scripts.studies.labels import place_labels
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
FONT, MARKER = 7.5, 13.0  # points, of labels and of the largest marker


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


def draw_panel(axes: Axes, level: str, points: Sequence[Plotted], seconds: tuple[float, float]) -> None:
    """Markers, standard errors and the line of unmerged frames; labels come when the panel has its place.

    seconds: from where to where the panel reaches.
    """
    axes.set_title(f"level “{level}”", fontsize=10)
    if len(unmerged := unmerged_line(points)) > 1:
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


def unmerged_line(points: Sequence[Plotted]) -> list[tuple[float, float]]:
    """Seconds and accuracy of what is not merged, at all numbers of frames."""
    return sorted((point.seconds, point.accuracy) for point in points if point.family in ("unmerged", "fewer"))


def label_panel(axes: Axes, points: Sequence[Plotted]) -> None:
    """Label the points of a panel that has its place, beside their error bars and the line of unmerged frames."""
    bars = [
        ((point.seconds, point.accuracy - point.error), (point.seconds, point.accuracy + point.error))
        for point in points
    ]
    places = [(point.seconds, point.accuracy) for point in points]
    lines = [*bars, *pairwise(unmerged_line(points))]
    place_labels(axes, places, [point.label for point in points], FONT, lines, MARKER)


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
    figure.draw_without_rendering()
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
