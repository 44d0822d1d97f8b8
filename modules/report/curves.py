"""Curves of what runs logged: losses, rates, metrics and the gate's figures, over their steps."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modules.report.page import new_figure, styled

SIZE = (3.3, 2.1)  # inches: a phone shows it as large as it is drawn
# of Okabe and Ito's palette, dark and light in turns, with a line style each
STYLES = [("#000000", "-"), ("#E69F00", "--"), ("#0072B2", "-."), ("#56B4E9", ":"), ("#D55E00", "-"), ("#009E73", "--")]
MARKED = 12  # points of a curve up to which each has a marker


@dataclass(frozen=True)
class Panel:
    """What one picture shows.

    Attributes:
        title: above it.
        kind: of the logged lines, ``train`` or ``eval``.
        keys: in these lines, with what each is called.
        axis: the unit.
    """

    title: str
    kind: str
    keys: Mapping[str, str]
    axis: str


PANELS = (
    Panel("Loss", "train", {"loss": ""}, "cross-entropy"),
    Panel("Learning rate", "train", {"lr": ""}, "largest rate"),
    Panel("Gradient", "train", {"grad_norm": ""}, "norm before clipping"),
    Panel("Text→video", "eval", {"t2v_R1": "R@1", "t2v_R5": "R@5"}, "% of queries"),
    Panel("Video→text", "eval", {"v2t_R1": "R@1", "v2t_R5": "R@5"}, "% of queries"),
    Panel("Accuracy", "eval", {"top1": "top-1", "top5": "top-5"}, "% of videos"),
    Panel("Temporal prompts", "train", {"tokens_per_gap": ""}, "tokens a gap, mean"),
    Panel("Gaps without a token", "train", {"gaps_without_tokens": ""}, "share of gaps"),
    Panel("Frame variation", "train", {"frame_variation": ""}, "mean of Wᵗ"),
    Panel("Clipped steps", "train", {"clipped_steps": ""}, "share of logged steps"),
)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; none where there is no such file, as of what only evaluated."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # of a run that goes on the last line may be half there
    return [json.loads(line) for line in lines if line.endswith("}")]


def series_of(entries: Sequence[Mapping[str, Any]], kind: str, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of what has been logged under a name."""
    found = [(entry["step"], entry[key]) for entry in entries if entry["kind"] == kind and entry.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def panels_of(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[Panel, Figure]]:
    """A picture for each of `PANELS` that any run has logged.

    Args:
        runs: what each logged, by its name.
    """
    found = []
    for panel in PANELS:
        series = {
            (name, label): points
            for name, entries in runs.items()
            for key, label in panel.keys.items()
            if (points := series_of(entries, panel.kind, key))[0]
        }
        if series:
            found.append((panel, draw_panel(panel, series, list(runs))))
    return found


@styled
def draw_panel(
    panel: Panel, series: Mapping[tuple[str, str], tuple[list[int], list[float]]], names: Sequence[str]
) -> Figure:
    """A picture of some runs' curves.

    Args:
        panel: which.
        series: steps and values by run and label.
        names: of all runs: each has its colour in every picture.
    """
    figure = new_figure(*SIZE)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    labels = list(panel.keys.values())
    for (name, label), (steps, values) in series.items():
        colour, line = STYLES[names.index(name) % len(STYLES)]
        several = len(labels) > 1
        axes.plot(
            *(steps, values),
            **{"color": colour, "linestyle": line, "linewidth": 1.0, "label": f"{name} {label}".strip()},
            **{"alpha": 0.55 if several and label == labels[-1] else 1.0},
            **{"marker": "o" if len(steps) <= MARKED else None, "markersize": 2.5},
        )
    axes.set_title(panel.title)
    axes.set_xlabel("step")
    axes.set_ylabel(panel.axis)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    if len(series) > 1:
        figure.legend(loc="outside lower center", ncols=2 if len(series) > 2 else len(series), frameon=False)
    return figure
