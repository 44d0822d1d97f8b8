"""Test sets without some of their videos: counted in ``results.json``, and said wherever results are printed.

Metrics of fewer videos are another measurement, mostly a better one: there are fewer wrong answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from modules.tasks.base import Task

COUNTS = ("videos", "listed", "missing", "dropped")


def find_thinned(task: Task) -> dict[str, dict[str, int]]:
    """What ``results.json`` says of videos that a task's evaluation leaves out; nothing where it leaves out none.

    Returns:
        ``thinned``: how many ``videos`` the metrics are of, how many are ``listed``, and of these how many are
        ``missing``, without a file, and ``dropped``, since they cannot be read.
    """
    missing = len({video for name, video in task.missing if name != "training"})
    dropped, videos = len(task.evaluation_set.dropped), task.counts["videos"]
    return _entry(videos, videos + missing + dropped, missing, dropped)


def join_thinned(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The same of several results together."""
    whole = [{"videos": result["videos"], "listed": result["videos"], "missing": 0, "dropped": 0} for result in results]
    parts = [result.get("thinned", default) for result, default in zip(results, whole, strict=True)]
    return _entry(*(sum(part[name] for part in parts) for name in COUNTS))


def _entry(*counts: int) -> dict[str, dict[str, int]]:
    named = dict(zip(COUNTS, counts, strict=True))
    return {"thinned": named} if named["videos"] < named["listed"] else {}


def say_thinned(results: Mapping[str, Any]) -> str:
    """That results are of a thinned test set, in words; empty where they are not.

    Args:
        results: as in ``results.json``, or what `find_thinned` gives.
    """
    if found := results.get("thinned"):
        return f"thinned test set: {found['videos']:,} of {found['listed']:,} videos"
    if dropped := results.get("dropped_videos"):  # of results from before there was that entry
        return f"thinned test set: {dropped} videos were left out"
    return ""
