"""What was measured, as docs/results/ keeps it."""

import json
from pathlib import Path
from typing import Any

from modules.runtime.run_folder import describe_machine, git_commit


def write_record(path: Path, measured: dict[str, Any]) -> None:
    """Write what was measured, with the machine and the commit, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"measured": measured, "machine": describe_machine(), "git_commit": git_commit()}
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
