"""The papers' tables, with what was reproduced here beside what was published.

  .venv/bin/python scripts/table.py runs/msrvtt runs/msrvtt_vop    # STOP's Table 2, MSR-VTT 1k-A, as Markdown
  .venv/bin/python scripts/table.py runs/msrvtt* --format latex    # or csv
  .venv/bin/python scripts/table.py --table detection              # STPN's Table 2; its others have names of their own

RUNS are run folders, or their ``results.json``. What was published stands in docs/published/, a file a table, with its
source and as it was printed; it is never this project's own. Beside each number stands that of a run of the same
method, a blank where there is none, and their difference. A method of which there are several runs has a line for each,
and a run that reproduces no row has one of its own. What makes a run another measurement than the published one, such
as a test set without some of its videos, is said in a note, and there is no difference then.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from modules.methods import METHODS
from modules.program.build import settings_of
from modules.runtime.run_folder import CONFIG, RESULTS
from modules.tasks.thinned import say_thinned

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "published"
TABLES = sorted(path.stem for path in PUBLISHED.glob("*.json"))
MINUS = "−"


@dataclass(frozen=True)
class Column:
    """A number of each row.

    Attributes:
        key: its name in ``results.json``.
        group: what stands above it and its neighbours; may be empty.
        name: its heading.
        decimals: that are shown of what was reproduced.
        scale: what the number in ``results.json`` is divided by.
    """

    key: str
    group: str
    name: str
    decimals: int
    scale: float = 1

    @property
    def title(self) -> str:
        """The heading with what stands above it."""
        return f"{self.group} {self.name}".strip()


@dataclass(frozen=True)
class Table:
    """A published table.

    Attributes:
        title, source, legend: what it is, where it was published, what its columns are.
        texts: headings of what each row says in words.
        columns: of numbers.
        rows: mappings: ``name``; ``texts``; ``values``, numbers by key as they were printed; and, where there are any,
            ``method`` and ``settings``, which a run of it has, a ``note``, and a ``source`` that is not the table's.
        evaluated: what a run must have been evaluated on to be compared; None where nothing here evaluates that.
        settings: what a run of any row has.
    """

    title: str
    source: str
    legend: str
    texts: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    evaluated: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str) -> "Table":
        """One of `TABLES`."""
        content = json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
        return cls(**content | {"columns": [Column(**column) for column in content["columns"]]})


@dataclass(frozen=True)
class Run:
    """What a run found.

    Attributes:
        where: its folder, as it was given.
        method: its ``--method``.
        settings: the method's; empty where they are not known.
        results: what is in ``results.json``.
        notes: in what it is another measurement than the published one.
    """

    where: str
    method: str
    settings: Mapping[str, Any]
    results: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)


def read_json(path: Path) -> dict[str, Any]:
    """A file of a run.

    Raises:
        UserError: if it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not what a run writes: expected an object, found {type(content).__name__}")
    return content


def read_run(given: Path, table: Table) -> Run:
    """A run that a table may compare.

    Args:
        given: its folder or ``results.json``.
        table: where it is to stand.

    Raises:
        UserError: if there are no results, or they are of something else.
    """
    if table.evaluated is None:
        raise UserError(f"{given}: no run evaluates this table's task, {table.title}: give no RUNS")
    path = given if given.suffix == ".json" else given / RESULTS
    if not path.is_file():
        raise UserError(f"{given} has no {RESULTS}: give the --output_dir of a run that has finished")
    results, wanted = read_json(path), table.evaluated
    words = ("dataset", "method")
    needed = [*words, *(column.key for column in table.columns)]
    if results.get("dataset", wanted["dataset"]) != wanted["dataset"]:
        raise UserError(f"{given} was evaluated on {results['dataset']}, this table is of {wanted['dataset']}")
    if missing := [name for name in needed if not isinstance(results.get(name), str if name in words else int | float)]:
        raise UserError(f"{path} does not say {', '.join(missing)}: it is no {RESULTS} of this table's task")
    config = path.with_name(CONFIG)
    recorded = read_json(config).get("settings", {}) if config.is_file() else {}
    settings = recorded
    if recorded and results["method"] in METHODS:  # so that what is meant alike is said alike, also in older runs
        settings = recorded | vars(settings_of(METHODS[results["method"]].settings, recorded))
    notes = [] if recorded else [f"has no {CONFIG}, which says with what settings"]
    return Run(str(given), results["method"], settings, results, notes + differences(results, settings, wanted))


def differences(results: Mapping[str, Any], settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What of an evaluation is not as published, in words."""
    notes = []
    if thinned := say_thinned(results):
        notes.append(thinned)
    elif (results.get("texts"), results.get("videos")) != (wanted["texts"], wanted["videos"]):
        notes.append(
            f"another test set: {results.get('texts')} texts and {results.get('videos')} videos, published "
            f"{wanted['texts']} and {wanted['videos']}"
        )
    if results.get("protocol", {}).get("v2t_ranks") == "captions":
        notes.append("v→t ranks among captions, published among videos")
    clip = str(results.get("clip"))
    if clip != wanted["clip"] and Path(clip).name != wanted["clip"].replace("/", "-") + ".pt":
        notes.append(f"another CLIP: {Path(clip).name}, published {wanted['clip']}")
    if results.get("max_frames") != wanted["max_frames"]:
        notes.append(f"{results.get('max_frames')} frames a video, published {wanted['max_frames']}")
    if settings.get("eval_frame_order", "ordered") != "ordered":
        notes.append("frames in another order than the video's")
    return notes


def place_of(run: Run, table: Table) -> tuple[int | None, str]:
    """The row that a run reproduces, None for none, and what to call it."""
    own = [number for number, row in enumerate(table.rows) if row.get("method") == run.method]
    if not own:
        return None, run.method
    row = table.rows[own[0]]
    other = [
        f"{name} {run.settings[name]}"
        for name, value in {**table.settings, **row.get("settings", {})}.items()
        if run.settings.get(name, value) != value
    ]
    return (None, f"{row['name']} with {', '.join(other)}") if other else (own[0], row["name"])


def make_frame(table: Table, runs: Sequence[Run]) -> pd.DataFrame:
    """The table as it is shown.

    Returns:
        A row a published row and run of it, then one for each other run: ``method``, the texts, three columns for each
        of the table's ("t→v R@1 published", "… ours", "… difference", as text, empty where there is none), ``run``,
        ``source`` and ``notes``.
    """
    published = pd.DataFrame(
        {
            "row": number,
            "method": row["name"],
            **dict(zip(table.texts, row["texts"], strict=True)),
            **{f"{column.title} published": row["values"].get(column.key, "") for column in table.columns},
            "source": row.get("source", table.source),
            "note": row.get("note", ""),
        }
        for number, row in enumerate(table.rows)
    )
    reproduced, others = [], []
    for run in runs:
        number, name = place_of(run, table)
        if number is None:  # behind the published ones
            number = len(table.rows) + len(others)
            others.append({"row": number, "method": name})
        numbers = {f"{c.title} ours": f"{run.results[c.key] / c.scale:.{c.decimals}f}" for c in table.columns}
        reproduced.append({"row": number, **numbers, "run": run.where, "notes": "; ".join(run.notes)})
    ours = pd.DataFrame(reproduced, columns=["row", *(f"{c.title} ours" for c in table.columns), "run", "notes"])
    frame = pd.concat([published, pd.DataFrame(others)]).merge(ours, on="row", how="left").fillna("")
    for column in table.columns:
        cells = zip(frame[f"{column.title} published"], frame[f"{column.title} ours"], frame["notes"], strict=True)
        frame[f"{column.title} difference"] = [
            f"{float(mine) - float(theirs):+.{column.decimals}f}" if theirs and mine and not notes else ""
            for theirs, mine, notes in cells
        ]
    frame["notes"] = ["; ".join(filter(None, pair)) for pair in zip(frame["note"], frame["notes"], strict=True)]
    numbers = [f"{c.title} {part}" for c in table.columns for part in ("published", "ours", "difference")]
    return frame[["method", *table.texts, *numbers, "run", "source", "notes"]]


def numbered_notes(frame: pd.DataFrame) -> list[str]:
    """Each note once, in order."""
    return [note for note in dict.fromkeys(frame["notes"]) if note]


def explanation(table: Table) -> list[str]:
    """What is to be said below a table."""
    return [
        f"Of three columns the first is as published: {table.source}, if no note says otherwise. Ours: runs of this "
        "code. Δ: ours less published. Blank: there is none, or a note says why it would not compare.",
        table.legend,
    ]


def to_markdown(table: Table, frame: pd.DataFrame) -> str:
    """The table as GitHub shows it, notes below."""
    notes = numbered_notes(frame)
    heads = ["method", *table.texts, *(head for c in table.columns for head in (c.title, "ours", "Δ")), "run"]
    lines = [f"**{table.title}**", "", heads]
    lines.append(["---"] * (1 + len(table.texts)) + ["---:"] * (3 * len(table.columns)) + ["---"])
    for row in frame.drop(columns="source").itertuples(index=False):
        name = row[0] + (f" [{notes.index(row[-1]) + 1}]" if row[-1] else "")
        lines.append([name, *row[1:-1]])
    lines = [line if isinstance(line, str) else "| " + " | ".join(map(_in_markdown, line)) + " |" for line in lines]
    below = [f"[{number}] {note}." for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "", *(f"{line}  " for line in (*explanation(table), *below))])


def _in_markdown(cell: str) -> str:
    text = cell.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
    return MINUS + text[1:] if text[:1] == "-" and text[1:2].isdigit() else text


def to_latex(table: Table, frame: pd.DataFrame) -> str:
    """The table as a ``tabular``, notes below; no package is needed."""
    notes, columns = numbered_notes(frame), table.columns
    words = ["method", *table.texts]
    lines = [
        f"% {table.title}",
        f"\\begin{{tabular}}{{{'l' * len(words)}{'rrr' * len(columns)}l}}",
        "\\hline",
        " & ".join(
            [*map(_in_latex, words), *(f"\\multicolumn{{3}}{{c}}{{{_in_latex(c.title)}}}" for c in columns), "run"]
        )
        + " \\\\",
        " & ".join([""] * len(words) + ["published", "ours", "$\\Delta$"] * len(columns) + [""]) + " \\\\",
        "\\hline",
    ]
    for row in frame.drop(columns="source").itertuples(index=False):
        cells = [_in_latex(cell) for cell in row[:-1]]
        if row[-1]:
            cells[0] += f"$^{{{notes.index(row[-1]) + 1}}}$"
        lines.append(" & ".join(cells) + " \\\\")
    below = explanation(table) + [f"{number}: {note}." for number, note in enumerate(notes, 1)]
    return "\n".join([*lines, "\\hline", "\\end{tabular}", "", *(f"{_in_latex(line)}\\\\" for line in below)])


LATEX = {"\\": "\\textbackslash{}", "→": "$\\to$", "Δ": "$\\Delta$", "–": "--", "’": "'", "~": "\\textasciitilde{}"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {"^": "\\textasciicircum{}"}


def _in_latex(cell: str) -> str:
    text = "".join(LATEX.get(sign, sign) for sign in cell)
    return f"${text}$" if text[:1] in "+-" and text[1:2].isdigit() else text


def to_csv(table: Table, frame: pd.DataFrame) -> str:
    """The table for programs, its source and the notes in every row."""
    return frame.to_csv(index=False, lineterminator="\n").rstrip("\n")


FORMATS = {"markdown": to_markdown, "latex": to_latex, "csv": to_csv}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table; 1 where a run cannot stand in it, with a line for each on the error stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUNS", help="run folders, or their results.json")
    parser.add_argument("--table", choices=TABLES, default="retrieval", help="which (default: retrieval)")
    parser.add_argument("--format", choices=list(FORMATS), default="markdown", help="(default: markdown)")
    args = parser.parse_args(argv)
    table, runs, problems = Table.read(args.table), [], []
    for given in args.runs:
        try:
            runs.append(read_run(given, table))
        except UserError as error:
            problems.append(str(error))
    if problems:
        print("\n".join(problems), file=sys.stderr)
        return 1
    print(FORMATS[args.format](table, make_frame(table, runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
