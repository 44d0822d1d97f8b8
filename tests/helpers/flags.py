"""The flags of a run: what takes them, what one is, and the same with another value or without some."""

from pathlib import Path

import main_task_recognition
import main_task_retrieval
from dataloaders.datasets import RECOGNITION, RETRIEVAL
from helpers.runs import rows_of

# every program with the settings of its task, and every dataset, as the programs know them
PROGRAMS = {
    "retrieval": (main_task_retrieval, main_task_retrieval.RetrievalSettings),
    "recognition": (main_task_recognition, main_task_recognition.RecognitionSettings),
}
DATASETS = [*RETRIEVAL.values(), *RECOGNITION.values()]


def path_of(flags: list[str], name: str) -> Path:
    """The file or folder that a flag names."""
    return Path(flags[flags.index(name) + 1])


def with_value(flags: list[str], name: str, value: object) -> list[str]:
    """The same flags with another value of one."""
    at = flags.index(name) + 1
    return [*flags[:at], str(value), *flags[at + 1 :]]


def without(flags: list[str], *names: str) -> list[str]:
    """The same flags without some and their values."""
    left = list(flags)
    for name in names:
        at = left.index(name)
        del left[at : at + 2]
    return left


def train_ids(flags: list[str]) -> list[str]:
    """The videos of a retrieval run's training list, in its order."""
    return [row["video_id"] for row in rows_of(path_of(flags, "--train_csv"))]
