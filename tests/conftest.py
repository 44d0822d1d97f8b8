"""Fixtures that several tests share, and how pytest divides the suite over processes."""

import os
from pathlib import Path

# Before torch is imported, and inherited by the processes that tests start: a thread for each core in each of several
# processes would wait for the others' most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The programs that tests start import the same files a hundred times; compiled once, each starts half a second sooner.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest

from helpers.suite import LONG_FILES, num_processes
from helpers.tiny import make_tiny_clip, make_tiny_files, recognition_flags, retrieval_flags
from modules.clip.loader import LoadedCLIP


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`."""
    return num_processes(config.args)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(scope="session")
def tiny_clip() -> LoadedCLIP:
    """A tiny random CLIP; frozen, so tests may share it."""
    return make_tiny_clip()


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> Path:
    """A folder with a few toy videos (``dataset``: 22 for training, 6 for testing) and the tiny CLIP (``clip``)."""
    return make_tiny_files(tmp_path_factory.mktemp("tiny_run"))


@pytest.fixture(scope="session")
def tiny_run(tiny_files) -> list[str]:
    """Flags that run the retrieval program on the tiny files."""
    return retrieval_flags(tiny_files)


@pytest.fixture(scope="session")
def tiny_recognition(tiny_files) -> list[str]:
    """Flags that run the recognition program on the tiny files, with the two classes that they have videos of."""
    return recognition_flags(tiny_files)
