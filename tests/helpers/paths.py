"""Where the repository is, and the real inputs that may lie beside it."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"


def shared_data(name: str) -> Path:
    """A folder of real inputs; skips the test, saying so, where it is not there."""
    folder = SHARED_DATA / name
    if not folder.exists():
        pytest.skip(f"the real inputs are not here: {folder} is missing")
    return folder
