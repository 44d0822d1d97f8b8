"""The picture of an ablation: accuracy with error bars over seeds, and the seconds of a step, a panel a sweep."""

import io
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError
from scripts.ablation.sweeps import ACCURACIES, PROMPTS, SWEEPS, Point, accuracies, accuracy_key, runs_at, seconds
from scripts.studies.runner import STEP

ACCURACY, SECONDS = "#000000", "#D55E00"  # after Okabe and Ito
PANEL, DPI = (3.4, 2.5), 110  # inches, pixels an inch
COLUMNS = 3


def draw(record: Mapping[str, Any], levels: Sequence[str], points: Sequence[Point]) -> Figure:
    """The figure of what a record holds; a sweep of which no value has a run has no panel.

    Args:
        record: of the runs.
        levels: of which each has its own marker.
        points: of the sweeps.

    Raises:
        UserError: if no point has a run.
    """
    present = [name for name in SWEEPS if any(_measured(record, level, name, points) for level in levels)]
    if not present:
        raise UserError("nothing to draw: no training of the ablation is done yet")
    rows = -(-len(present) // COLUMNS)
    figure = Figure(figsize=(PANEL[0] * COLUMNS, PANEL[1] * rows + 0.3), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for axes, name in zip(panels, present, strict=False):
        draw_sweep(axes, record, levels, name, points)
    for axes in list(panels)[len(present) :]:
        axes.set_axis_off()
    drawn = figure.axes
    keys = {label: line for axes in drawn for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def draw_sweep(
    axes: Axes, record: Mapping[str, Any], levels: Sequence[str], sweep: str, points: Sequence[Point]
) -> None:
    """A panel: accuracy on the left axis, seconds on the right one, values side by side at equal distances."""
    title, axis = SWEEPS[sweep]
    at_value = {point.value: point for point in points if point.sweep == sweep}
    values = list(at_value)
    beside = axes.twinx()
    timed: dict[str, tuple[str, dict[int, float]]] = {}  # marker and seconds by place, by what they are called
    for marker, level in zip("osD^", levels, strict=False):
        found = _measured(record, level, sweep, points)
        at = [values.index(value) for value in found]
        of_level = f", {level}" if len(levels) > 1 else ""
        shown = [accuracies(runs) for runs in found.values()]
        axes.errorbar(
            *(at, [fmean(each) for each in shown]),
            yerr=[stdev(each) if len(each) > 1 else 0.0 for each in shown],
            fmt=marker if sweep == PROMPTS else f"{marker}-",
            **{"color": ACCURACY, "markersize": 5, "linewidth": 1.2, "capsize": 2.5},
            label=f"accuracy{of_level}",
        )
        taken = {values.index(value): seconds(record, at_value[value], runs) for value, runs in found.items()}
        # what was measured apart from the trainings is the same on all levels
        _, line = timed.setdefault(f"seconds a step{'' if STEP in record else of_level}", (marker, {}))
        line |= {place: least for place, least in taken.items() if least is not None}
        if found:
            axes.set_ylabel(ACCURACIES[accuracy_key(next(iter(found.values())))], fontsize=8)
    for label, (marker, line) in timed.items():
        style = {"linestyle": ":", "marker": marker, "markerfacecolor": "white", "markersize": 4, "linewidth": 1.2}
        if line:
            beside.plot(*zip(*sorted(line.items()), strict=True), color=SECONDS, label=label, **style)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(axis, fontsize=8)
    axes.set_xticks(range(len(values)), values)
    axes.set_xlim(-0.4, len(values) - 0.6)
    beside.set_ylabel("s a step", fontsize=8, color=SECONDS)
    for each in (axes, beside):
        each.set_ylim(0, 1.1 * max(each.dataLim.y1, 1e-3))  # what is highest is not cut
        each.tick_params(labelsize=8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_zorder(beside.get_zorder() + 1)  # accuracy before seconds
    axes.patch.set_visible(False)


def _measured(
    record: Mapping[str, Any], level: str, sweep: str, points: Sequence[Point]
) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each value of a sweep that has some."""
    found = {point.value: runs_at(record, level, point) for point in points if point.sweep == sweep}
    return {value: runs for value, runs in found.items() if runs}


def picture(record: Mapping[str, Any], levels: Sequence[str], points: Sequence[Point]) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    draw(record, levels, points).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
