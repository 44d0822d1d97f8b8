"""Puts the tables of the documentation in their places, from what was measured.

  .venv/bin/python scripts/docs_tables.py

A table stands between two comments, ``<!-- table: NAME -->`` and ``<!-- end of NAME -->``, in a page of docs/, and is
made of docs/results/ alone; a test holds that what stands there is what this program would write.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import choose_epsilon, gradient_precision, measure_reading, show_decay
from scripts.ablation import ablate
from scripts.benchmark import long_videos
from scripts.benchmark import tables as benchmark_tables
from scripts.moments import measure, scale, speed
from scripts.studies import choices, comparison, merging, patches

DOCS = Path(__file__).resolve().parents[1] / "docs"
# what a table is called: the file that it rests on, or several, and how it is made of what those hold, of which all but
# the first may be missing (None)
TABLES: dict[str, tuple[str | tuple[str, ...], Callable[..., str]]] = {
    "epsilon": ("epsilon.json", choose_epsilon.make_table),
    "decay": ("decay.json", show_decay.table),
    "precision": ("precision.json", gradient_precision.table),
    "speed": ("benchmark.json", benchmark_tables.speed),
    "bars": (("benchmark.json", "gpu_check.json"), benchmark_tables.bars),
    "counts": ("counts.json", benchmark_tables.counts),
    "growth": ("benchmark.json", benchmark_tables.growth),
    "long_videos": (("long_videos.json", "benchmark.json"), long_videos.table),
    "loader": ("benchmark.json", benchmark_tables.loader),
    "study": ("study_toy.json", choices.tables),
    "merging": (("study_toy.json", "study_merging.json"), merging.tables_of),
    "patches": ("patches.json", patches.tables),
    "ablation": (("ablation_toy.json", *(record.name for record in ablate.OTHERS)), ablate.toy_tables_of),
    "reading": ("reading.json", measure_reading.make_table),
    "search": ("search_toy.json", measure.table),
    "search_curve": ("search_toy.json", measure.curve_table),
    "search_speed": ("search_speed.json", speed.table),
    "search_scale": ("search_scale.json", scale.table),
    "search_recall": ("search_scale.json", scale.recall_table),
    "compare": ("compare_toy.json", comparison.tables),
}
MARKED = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(\n<!-- end of (?P=name) -->)", re.DOTALL)


def filled(page: str, results: Path = DOCS / "results") -> str:
    """A page with every table as it is measured.

    Args:
        page: Markdown.
        results: the folder of what was measured.
    """

    def read(file: str) -> Any:
        return json.loads((results / file).read_text(encoding="utf-8"))

    def fill(match: re.Match) -> str:
        files, make = TABLES[match["name"]]
        first, *more = [files] if isinstance(files, str) else files
        return (
            match[1]
            + make(read(first), *(read(file) if (results / file).exists() else None for file in more))
            + match[3]
        )

    return MARKED.sub(fill, page)


def main() -> None:
    """Fill every page."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
