"""A server of the page on a small index, for tests that ask it from outside."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers.search.index import embed_texts, make_index, make_videos
from search.playing import Clips
from search.queries import Searcher
from search.server import Server, make_app
from search.settings import JudgeSettings


@dataclass
class Served:
    """A running server.

    Attributes:
        port: that it listens at. token: that it wants, if any.
        root: the folder of its videos. index_dir: its index. searcher: what answers.
    """

    port: int
    token: str | None
    root: Path
    index_dir: Path
    searcher: Searcher


@contextlib.contextmanager
def serving(index_dir, root, host="127.0.0.1", name=None, max_queries=1, clip_limit=2**20):
    """Serve an index from a thread."""
    searcher = Searcher(index_dir, embed_texts, JudgeSettings(threshold=0.5))
    clips = Clips(index_dir / "clips", clip_limit)
    server = Server(lambda access: make_app(searcher, clips, access, max_queries), host, 0, name)
    thread = server.start()
    try:
        yield Served(server.access.port, server.access.token, root, index_dir, searcher)
    finally:
        server.stop()
        thread.join(timeout=10)


@pytest.fixture(scope="session")
def serve():
    """What serves an index."""
    return serving


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """An index of three videos, one of them in a folder of its own and one that no browser plays."""
    folder = tmp_path_factory.mktemp("served")
    root = folder / "videos"
    paths = [
        *make_videos(root, ["a.mp4", "more/b.mp4"]),
        *make_videos(root, ["c.avi"], codec="mpeg4"),
    ]
    return make_index(folder / "index", root, paths), root


@pytest.fixture(scope="module")
def server(indexed):
    """A server of that index on this machine alone."""
    with serving(*indexed) as served:
        yield served
