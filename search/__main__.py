"""Find a moment in your own videos: an index of overlapping windows, search by text, and a local page.

  bash scripts/search.sh index ~/Videos                     with plain CLIP, or with a training: --run runs/msrvtt
  bash scripts/search.sh search "a dog jumps into the water" --not "a pool"
  bash scripts/search.sh search --like holiday.mp4@83.5            moments like this one
  bash scripts/search.sh serve                                     the page, for a browser on this machine
  bash scripts/search.sh index /data --ray auto --index faiss      on a Ray cluster, for millions of windows
  bash scripts/search.sh info                                      what the index holds
  bash scripts/search.sh verify                                    whether its files are whole

`index` again does what is new or changed. COMMAND --help shows the flags of a command; docs/search.md says more.
"""

import argparse
import json
import logging
import math
import sqlite3
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.progress import clock, duration
from common.settings import add_arguments, from_arguments, range_problems
from search.settings import (
    IndexSettings,
    JudgeSettings,
    MatchingSettings,
    ModelSettings,
    PlaceSettings,
    QuerySettings,
    ServeSettings,
    VerifySettings,
)
from search.store import DATABASE

INTERRUPTED = 130


def index(arguments: argparse.Namespace) -> int:
    """Bring an index up to date; 1 where videos are bad."""
    from search.indexing import update
    from search.quantised import import_faiss, quantise

    kinds = (PlaceSettings, IndexSettings, ModelSettings, MatchingSettings)
    place, settings, model, matching = (from_arguments(kind, arguments) for kind in kinds)
    check(settings, model)
    if matching.index == "faiss":
        import_faiss()  # or hours of embedding come before it is said that there is none
    outcome = update(arguments.folders, place.index_dir, settings, model, set(vars(arguments)))
    print(outcome)
    for path, reason in sorted(outcome.bad.items()):
        print(f"  bad: {path}: {reason}")
    if matching.index == "faiss":
        print(quantise(place.index_dir))
    return 1 if outcome.bad else 0


def search(arguments: argparse.Namespace) -> int:
    """Answer a query; 1 where nothing stands out."""
    place, settings = from_arguments(PlaceSettings, arguments), from_arguments(QuerySettings, arguments)
    check(settings)
    if not arguments.text and settings.like is None:
        raise UserError('give a text, such as search "a dog runs", or --like VIDEO@SECONDS')
    from search.queries import Query

    searcher = open_searcher(place, arguments)
    query = Query(
        arguments.text or "",
        getattr(arguments, "not", ""),
        None if settings.like is None else searcher.find_window(settings.like),
        settings.folder or "",
        settings.min_seconds or 0.0,
        math.inf if settings.max_seconds is None else settings.max_seconds,
        settings.top,
        settings.all,
        by_path=True,
    )
    answer = searcher.answer(query)
    print(json.dumps(answer, indent=2, ensure_ascii=False) if settings.json else table(answer))
    return 0 if answer["stands_out"] else 1


def serve(arguments: argparse.Namespace) -> int:
    """Show the page until Ctrl-C."""
    place, settings = from_arguments(PlaceSettings, arguments), from_arguments(ServeSettings, arguments)
    check(settings)
    from search.playing import Clips
    from search.server import Server, make_app

    searcher = open_searcher(place, arguments)
    clips = Clips(place.index_dir / "clips", settings.clip_cache * 2**20)
    server = Server(
        lambda access: make_app(searcher, clips, access, settings.max_queries),
        settings.host,
        settings.port,
        settings.host_name,
    )
    if server.access.token is not None:
        print("Others can reach this address: whoever has the token in it sees the videos, unencrypted on the way.")
    print(f"open {server.address}", flush=True)
    server.run()
    return 0


def info(arguments: argparse.Namespace) -> int:
    """Say what an index holds."""
    from search.store import read_store

    store = read_store(from_arguments(PlaceSettings, arguments).index_dir)
    settings, videos = store.settings, store.videos()
    good = [video for video in videos if video.problem is None]
    growing = ", growing" if store.is_growing() else ""
    rows, picture_bytes = store.ends()
    print(f"index {store.folder}{growing}")
    clip = settings["pretrained_clip_name"]
    made_with = f"run {settings['run']}" if settings["run"] else f"method {settings['method']}"
    made_with += f" with CLIP {clip}" if clip else ""
    print(f"made with: {made_with}, {settings['max_frames']} frames a window")
    print(f"cut into: {float(settings['window']):g} s every {float(settings['stride']):g} s")
    print(f"folders: {', '.join(store.folders())}")
    print(f"videos: {len(good):,}, {duration(sum(video.seconds for video in good))}")
    print(
        f"windows: {len(store.rows().rows):,}; "
        f"embeddings {rows * store.width * 2:,} and pictures {picture_bytes:,} bytes"
    )
    for video in videos:
        if video.problem is not None:
            print(f"bad: {video.path}: {video.problem}")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    """Check an index's files; 1 where something is wrong."""
    from search.quantised import read_quantised
    from search.queries import state_of
    from search.store import read_store

    store = read_store(from_arguments(PlaceSettings, arguments).index_dir)
    if store.is_growing():
        raise UserError(f"a program is adding to {store.folder}: verify it when that has ended")
    problems = store.problems()
    if from_arguments(VerifySettings, arguments).videos:
        states = [(video, state_of(video)) for video in store.videos() if video.problem is None]
        problems += [f"{video.path} is {state}: index again" for video, state in states if state != "there"]
    if store.file("quantised").exists():
        try:
            read_quantised(store, None)
        except UserError as error:
            problems.append(str(error))
    print("\n".join(problems) if problems else f"{store.folder} is whole: {len(store.rows().rows):,} windows")
    return 1 if problems else 0


def open_searcher(place: PlaceSettings, arguments: argparse.Namespace) -> Any:
    """The index with the model that it was made with.

    Raises:
        UserError: if there is no index, or its model is not what it was.
    """
    model, judge = from_arguments(ModelSettings, arguments), from_arguments(JudgeSettings, arguments)
    check(model, judge)
    from search.store import read_store

    store = read_store(place.index_dir)  # before torch is imported, which takes seconds
    recorded = store.settings
    store.close()
    from search.models import check_fingerprint, check_same, open_run
    from search.queries import Searcher

    check_same(place.index_dir, recorded, model)
    run = open_run(recorded, model)
    check_fingerprint(place.index_dir, recorded, model, run)
    return Searcher(place.index_dir, run.embed_texts, judge, from_arguments(MatchingSettings, arguments).index)


def check(*settings: Any) -> None:
    """Refuse numbers that are out of their range.

    Raises:
        UserError: naming them.
    """
    if problems := range_problems(*settings):
        raise UserError("\n".join(problems))


def table(answer: dict[str, Any]) -> str:
    """An answer for people."""
    lines = []
    if answer["windows"] and not answer["considered"]:
        lines.append("no video fits the folder and the lengths that were asked for")
    elif not answer["stands_out"]:
        judged = "" if answer["excess"] is None else f" ({answer['excess']:+.2f} above generic texts)"
        hint = "" if answer["moments"] else "; --all shows the nearest moments" if answer["excess"] is not None else ""
        lines.append(f"nothing stands out{judged}{hint}" if answer["windows"] else "the index holds no windows")
    if answer["moments"]:
        width = max(len(moment["file"]) for moment in answer["moments"])
        lines.append(f"{'score':>6}  {'video':<{width}}  from–to")
        for moment in answer["moments"]:
            state = "" if moment["state"] == "there" else f"  ({moment['state']})"
            times = f"{clock(moment['from'])}–{clock(moment['to'])}"
            lines.append(f"{moment['score']:6.2f}  {moment['file']:<{width}}  {times}{state}")
    if answer["growing"]:
        lines.append(f"the index is growing: {answer['done']} of {answer['total']} videos")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("search.sh", description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], *settings: type) -> argparse.ArgumentParser:
        made = commands.add_parser(run.__name__, help=run.__doc__, description=run.__doc__, allow_abbrev=False)
        made.set_defaults(act=run)
        for part in settings:
            add_arguments(made, part, part.__doc__.splitlines()[0].removeprefix("Flags of ").rstrip("."))
        return made

    made = command(index, PlaceSettings, IndexSettings, MatchingSettings, ModelSettings)
    made.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="with videos, at any depth")
    made = command(search, PlaceSettings, QuerySettings, MatchingSettings, JudgeSettings, ModelSettings)
    made.add_argument("text", nargs="?", default="", metavar="TEXT", help="what happens in the moment")
    made.add_argument("--not", default="", metavar="TEXT", help="what it should not be")
    command(serve, PlaceSettings, ServeSettings, MatchingSettings, JudgeSettings, ModelSettings)
    command(info, PlaceSettings)
    command(verify, PlaceSettings, VerifySettings)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 2 where it cannot be done."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arguments = make_parser().parse_args(argv)
    try:
        return arguments.act(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
    except sqlite3.Error as error:
        print(f"{arguments.index_dir / DATABASE}: {error}; verify says whether the index is whole", file=sys.stderr)
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        print(f"{named}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED
    return 2


if __name__ == "__main__":
    sys.exit(main())
