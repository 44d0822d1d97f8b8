"""How long a query takes, and what it keeps in memory, by the number of windows; and what faiss' candidates miss.

  .venv/bin/python scripts/moments/scale.py [--similarities FILE.npy] [--record docs/results/search_scale.json]

Makes an index of each number of windows and asks it in a process of its own. The windows' embeddings are made up. With
``--similarities``, the texts-by-videos matrix of a trained model, they are not made up from nothing: the matrix is
factored into one vector a text and one a video, whose products it holds; a window is a video's vector, moved by half
the difference of two others'; and what faiss' candidates miss is measured with the matrix's own texts as queries, and
with windows as queries beside it. Without the matrix texts and windows are random, and that is left out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.memory import anonymous_mb
from common.seeds import derive_seed
from scripts.moments.record import write_record
from search.quantised import Quantised, quantise, read_quantised
from search.queries import Query, Searcher
from search.scoring import similarities
from search.settings import JudgeSettings
from search.store import Part, Stamp, open_for_writing

SIZES = 10_000, 100_000, 1_000_000
QUICK = 1_500, 3_000
WIDTH = 512  # E, of ViT-B/32
A_VIDEO = 1000  # windows
FOLDERS = 10
STRIDE, WINDOW = 4.0, 8.0  # seconds
JPEG = b"\xff\xd8\xff\xd9"
CANDIDATES = 10, 100, 500, 2000  # that recall is shown for
BEST = 10
QUERIES = 100  # that recall is a mean of
LOOK = 0.002  # seconds between two looks at the memory

Texts = Callable[[Sequence[str]], np.ndarray]


class World:
    """Windows and texts: the same ones wherever they are made."""

    def __init__(self, matrix: Path | None):
        """From a texts-by-videos matrix of similarities, times 100 as logits are or not; or from nothing."""
        draw = np.random.default_rng(0)
        if matrix is None:
            self.texts, self.videos = (draw.normal(size=(1000, WIDTH)).astype(np.float32) for _ in range(2))
            for rows in (self.texts, self.videos):
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            return
        found = np.load(matrix).astype(np.float64)
        left, values, right = np.linalg.svd(found / (100 if np.abs(found).max() > 1 else 1), full_matrices=False)
        width = min(WIDTH, len(values))
        roots = np.sqrt(values[:width])
        self.texts, self.videos = (
            np.pad(rows, ((0, 0), (0, WIDTH - width))).astype(np.float32)
            for rows in (left[:, :width] * roots, right[:width].T * roots)
        )

    def windows(self, number: int) -> np.ndarray:
        """(A_VIDEO, E) float32, those of a video by its number."""
        near, one, other = np.random.default_rng([1, number]).integers(len(self.videos), size=(3, A_VIDEO))
        return self.videos[near] + (self.videos[one] - self.videos[other]) / 2

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, E): a text of the matrix for each."""
        return self.texts[[derive_seed(text) % len(self.texts) for text in texts]]


def make_index(folder: Path, size: int, world: World) -> None:
    """An index of so many windows, in folders and videos of different lengths."""
    settings = {"width": WIDTH, "window": WINDOW, "stride": STRIDE}
    with open_for_writing(folder, settings) as store:
        for number in range(-(-size // A_VIDEO)):
            count = min(A_VIDEO, size - number * A_VIDEO)
            bounds = [(STRIDE * place, STRIDE * place + WINDOW) for place in range(count)]
            name = f"videos/{number % FOLDERS}/{number}.mp4"
            seconds = 1000.0 * (1 + number % 4)
            store.add(
                f"/{name}", name, Stamp(1, 1), Part(seconds, bounds, world.windows(number)[:count], [JPEG] * count)
            )


class Peak:
    """The most memory of this process's own, above what it has at the start; to be entered."""

    def __enter__(self) -> "Peak":
        self._before, self._most, self._ended = anonymous_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self._most = max(self._most, anonymous_mb())
            if self._ended.wait(LOOK):
                return

    @property
    def mb(self) -> float:
        """MiB."""
        return round(self._most - self._before, 1)


def ask(searcher: Searcher, like: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of a query of each kind."""
    kinds: dict[str, dict[str, Any]] = {
        "text": {},
        "text, not": {"unlike": "something else"},
        "text, like": {"like": like},
        "text, a tenth of the folders": {"folder": "videos/3"},
        "text, half of the lengths": {"max_seconds": 2000.0},
    }
    times: dict[str, list[float]] = {name: [] for name in kinds}
    for place in range(rounds):
        for name, more in kinds.items():
            query = Query(f"query {place}", all=True, **more)
            searcher.text(query.text)  # what the model takes is not the index's
            began = time.perf_counter()
            searcher.answer(query)
            times[name].append(time.perf_counter() - began)
    return {name: round(1000 * median(taken), 1) for name, taken in times.items()}


def recall(searcher: Searcher, quantised: Quantised, world: World) -> dict[str, Any]:
    """Share in percent of the best windows that are among so many candidates, for texts and for windows as queries."""
    loaded = searcher.load()
    chosen = np.random.default_rng(2).choice(len(loaded.embeddings), QUERIES, replace=False)
    asked = {"texts": world.texts[:QUERIES], "windows": loaded.embeddings[np.sort(chosen)].astype(np.float32)}
    found: dict[str, Any] = {}
    for name, queries in asked.items():
        exact = similarities(loaded.embeddings, loaded.rows.rows, queries)  # (n, Q)
        best = loaded.rows.rows[np.argpartition(-exact, BEST, axis=0)[:BEST]].T
        _, candidates = quantised.index.search(queries, min(max(CANDIDATES), len(loaded.embeddings)))
        found[name] = {
            str(count): round(
                100 * float(np.mean([np.isin(b, c[:count]).mean() for b, c in zip(best, candidates, strict=True)])), 1
            )
            for count in CANDIDATES
        }
    return found


def measure(folder: Path, size: int, matrix: Path | None, rounds: int) -> dict[str, Any]:
    """One index, in this process."""
    world = World(matrix)
    found: dict[str, Any] = {"windows": size}
    world.embed_texts(["something"])
    torch.ones(256, 256) @ torch.ones(256, 256)  # threads and their memory, once a process
    with Peak() as peak:
        began = time.perf_counter()
        searcher = Searcher(folder, world.embed_texts, JudgeSettings())
        found["open_seconds"] = round(time.perf_counter() - began, 2)
        like = int(searcher.load().rows.windows[size // 3])
        found["exact_ms"] = ask(searcher, like, rounds)
    found["exact_mb"] = peak.mb
    began = time.perf_counter()
    quantise(folder)
    found["quantise_seconds"] = round(time.perf_counter() - began, 1)
    quantised = read_quantised(searcher.store, None)
    found["faiss_file_mb"] = round(quantised.path.stat().st_size / 2**20, 1)
    with Peak() as peak:
        began = time.perf_counter()
        by_faiss = Searcher(folder, world.embed_texts, JudgeSettings(), "faiss")
        found["faiss_open_seconds"] = round(time.perf_counter() - began, 2)
    found["faiss_mb"] = peak.mb
    found["faiss_ms"] = ask(by_faiss, like, rounds)
    if matrix is not None:
        found["recall"] = recall(searcher, quantised, world)
        found["same_answers"] = same_answers(searcher, by_faiss)
    return found


def same_answers(exact: Searcher, by_faiss: Searcher) -> float:
    """Share in percent of the exact answers' first moments that faiss' have, too."""
    shares = []
    for place in range(QUERIES):
        query = Query(f"query {place}", top=BEST, all=True)
        one, other = ({moment["window"] for moment in of.answer(query)["moments"]} for of in (exact, by_faiss))
        shares.append(len(one & other) / len(one))
    return round(100 * float(np.mean(shares)), 1)


def table(record: dict[str, Any]) -> str:
    """Milliseconds and memory by the number of windows."""
    rows = list(record["measured"]["sizes"].values())
    kinds = list(rows[0]["exact_ms"])
    titles = [f"{row['windows']:,}" for row in rows]
    lines = ["| windows | " + " | ".join(titles) + " |", "|---|" + "---:|" * len(rows)]
    for way, name in (("exact_ms", "exact"), ("faiss_ms", "faiss")):
        for kind in kinds:
            cells = [f"{row[way][kind]:.0f}" if row[way][kind] >= 10 else f"{row[way][kind]:.1f}" for row in rows]
            lines.append(f"| {name}: {kind}, ms | {' | '.join(cells)} |")
    for title, key in (
        ("exact: memory above the mapped file, MiB", "exact_mb"),
        ("exact: opening the index, s", "open_seconds"),
        ("faiss: memory above the mapped file, MiB", "faiss_mb"),
        ("faiss: opening the index, s", "faiss_open_seconds"),
        ("faiss: making its file, s", "quantise_seconds"),
        ("faiss: its file, MiB", "faiss_file_mb"),
        (f"faiss: of the first {BEST} moments those that the exact answer has, %", "same_answers"),
    ):
        if key not in rows[0]:  # what texts are needed for
            continue
        lines.append(f"| {title} | {' | '.join(f'{row[key]:,.1f}' for row in rows)} |")
    return "\n".join(lines)


def recall_table(record: dict[str, Any]) -> str:
    """What faiss' candidates hold of the best windows."""
    heads = [f"{count:,} candidates" for count in CANDIDATES]
    lines = ["| windows | queries | " + " | ".join(heads) + " |", "|---:|---|" + "---:|" * len(heads)]
    for row in record["measured"]["sizes"].values():
        for name, shares in row["recall"].items():
            cells = [f"{shares[str(count)]:.1f}" for count in CANDIDATES]
            lines.append(f"| {row['windows']:,} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--similarities", type=Path, metavar="FILE", help="texts-by-videos matrix of a trained model")
    parser.add_argument("--record", type=Path, metavar="FILE", help="also write the results as JSON")
    parser.add_argument("--quick", action="store_true", help="few windows and queries, to see that it works")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "WINDOWS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    rounds = 2 if arguments.quick else 15
    if arguments.one is not None:
        folder, size = arguments.one
        print(json.dumps(measure(Path(folder), int(size), arguments.similarities, rounds)))
        return 0
    world, sizes = World(arguments.similarities), {}
    with tempfile.TemporaryDirectory() as scratch:
        for size in QUICK if arguments.quick else SIZES:
            folder = Path(scratch) / str(size)
            make_index(folder, size, world)
            command = [sys.executable, __file__, "--one", str(folder), str(size)]
            command += ["--quick"] if arguments.quick else []
            command += ["--similarities", str(arguments.similarities.resolve())] if arguments.similarities else []
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            sizes[str(size)] = json.loads(done.stdout.splitlines()[-1])
    matrix = arguments.similarities and arguments.similarities.name
    results = {"sizes": sizes, "threads": torch.get_num_threads(), "similarities": matrix}
    print(table({"measured": results}))
    if arguments.similarities:
        print(f"\n{recall_table({'measured': results})}")
    if arguments.record is not None:
        write_record(arguments.record, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
