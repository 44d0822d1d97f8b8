"""The picture of the controlled comparison: accuracy against the seconds of a training step, a panel a level.

Families differ in marker as well as in colour, and the colours in how light they are, so that a print in grey and a
colour-blind reader tell them apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError
from scripts.studies.comparison import ROWS, runs_at
from scripts.studies.labels import place_labels
from scripts.studies.runner import LEVELS, STEP

# marker, size, colour and name of each, dark to light, after Okabe and Ito's colours
FAMILIES = {
    "stop": ("*", 16, "#000000", "STOP"),
    "tuning": ("s", 8, "#004D80", "CLIP tuned"),
    "adapter": ("D", 8, "#009E73", "adapters"),
    "prompt": ("o", 8, "#E69F00", "prompts"),
    "control": ("^", 9, "#F0E442", "controls of STOP"),
}
SIZE, DPI = (13, 6.5), 100  # inches, pixels an inch
FONT = 8


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Draw the picture of a record into a PNG file.

    Raises:
        UserError: if no training of it is done whose step was timed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = make_figure(record)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


@dataclass
class Panel:
    """What labels of a panel have to do with.

    Attributes:
        points: where each label belongs, by its text.
        lines: what none may cover, as two points each.
    """

    points: dict[str, tuple[float, float]] = field(default_factory=dict)
    lines: list[tuple[tuple[float, float], tuple[float, float]]] = field(default_factory=list)


def make_figure(record: Mapping[str, Any]) -> Figure:
    """The figure of a record; see `draw`."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(LEVELS))
    panels = [draw_level(axes, record, level) for axes, level in zip(all_axes, LEVELS, strict=True)]
    if not any(panel.points for panel in panels):
        raise UserError(
            "no row has both a training and the seconds of a step yet: bash scripts/compare_toy.sh, then --time"
        )
    for marker, size, colour, name in FAMILIES.values():
        style = {"marker": marker, "markersize": size, "color": colour, "markeredgecolor": "black"}
        all_axes[0].plot([], [], linestyle="", label=name, **style)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(FAMILIES) + 1)
    figure.draw_without_rendering()  # gives the panels their places
    figure.set_layout_engine("none")
    for axes, panel in zip(all_axes, panels, strict=True):
        place_labels(axes, list(panel.points.values()), list(panel.points), FONT, panel.lines)
    return figure


def draw_level(axes: Axes, record: Mapping[str, Any], level: str) -> Panel:
    """Points and error bars of a level."""
    panel, highest, frozen = Panel(), 0.0, None
    timed = record.get(STEP, {}).get("seconds", {})
    for name, row in ROWS.items():
        runs = runs_at(record, name, level)
        if not runs:
            continue
        values = [run["metrics"]["t2v_R1"] for run in runs]
        accuracy, error = fmean(values), stdev(values) if len(values) > 1 else 0.0
        highest = max(highest, accuracy + error)
        if not row.trains:
            frozen = accuracy
            continue
        marker, size, colour, _ = FAMILIES[row.family]
        if name not in timed:
            continue
        seconds = timed[name]
        style = {"marker": marker, "markersize": size, "color": colour, "markeredgecolor": "black"}
        axes.errorbar(seconds, accuracy, yerr=error, ecolor="0.35", elinewidth=1, capsize=2.5, zorder=3, **style)
        panel.points[row.title] = (seconds, accuracy)
        panel.lines.append(((seconds, accuracy - error), (seconds, accuracy + error)))
    axes.set_title(f"level “{level}”")
    axes.set_xlabel("seconds a training step, one thread")
    axes.set_ylabel("text→video R@1, %")
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_ylim(0, 1.12 * max(highest, 1.0))
    if panel.points:
        seconds = [x for x, _ in panel.points.values()]
        spare = 0.15 * (max(seconds) - min(seconds) or 1.0)
        axes.set_xlim(min(seconds) - spare, max(seconds) + 1.5 * spare)
    if frozen is not None:
        axes.axhline(frozen, color="0.3", linestyle="--", linewidth=1, label="zero-shot, nothing trained", zorder=1)
        panel.lines.append(((axes.get_xlim()[0], frozen), (axes.get_xlim()[1], frozen)))
    return panel
