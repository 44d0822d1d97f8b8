"""Pictures of what models do with videos; docs/figures.md shows each.

  .venv/bin/python scripts/visualize.py attention a.mp4 b.mp4 --text "a dog runs" "a man sings" \\
      --runs zero_shot runs/stop
  .venv/bin/python scripts/visualize.py regions a.mp4 --runs runs/stop --maps   # the chosen patches of each frame
  .venv/bin/python scripts/visualize.py timeline a.mp4 --runs runs/stop         # what changes between frames
  .venv/bin/python scripts/visualize.py errors runs/stop                        # what a run gets wrong

A run is the folder of a training, a checkpoint, or zero_shot for the frozen CLIP that the first of the other runs was
trained with. --clip says where that is if it is not where it was then. Layers count from 0.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from common.errors import UserError
from dataloaders.video.decoding import BadVideoError
from modules.program.build import find_checkpoint
from modules.program.inspection import Inspected, check_layer, inspect, read_frames, spread
from modules.program.loading import Run, load_run
from modules.report.mistakes import draw_mistakes
from modules.report.page import WIDTH, in_digits, ranges, write
from modules.report.strips import Row, Strip, Timeline, draw_strips, draw_timelines
from modules.runtime.run_folder import load_checkpoint
from scripts.figures.mistakes import find_mistakes

ZERO_SHOT = "zero_shot"
LEAST_WIDTH = 3.0  # inches
# maps that `regions --maps` adds, by their names in the details, and their units, M's by --dynamics_norm
MAPS = {
    "attention_map": "A, attention",
    "temporal_dynamics": "M, temporal dynamics",
    "region_scores": "Wˢ, what patches are chosen by",
}
UNITS = {"attention_map": "share", "region_scores": "score"}
UNITS_OF_DYNAMICS = {"frame": "share", "none": "mean square"}


def load_runs(
    sources: Sequence[str],
    clip: str | None = None,
    max_frames: int | None = None,
    max_words: int | None = None,
    pretrained_dir: str | None = None,
) -> list[Run]:
    """The runs that a command line names.

    Raises:
        UserError: if one is not there, or they see different frames of a video.
    """
    trained = [source for source in sources if source != ZERO_SHOT]
    for source in trained:
        if not Path(source).exists():
            raise UserError(f"--runs {source}: there is no such folder or checkpoint")
    given = {"clip": clip, "pretrained_dir": pretrained_dir, "max_frames": max_frames, "max_words": max_words}
    loaded = {source: load_run(source, **given) for source in dict.fromkeys(trained)}
    if ZERO_SHOT in sources:
        if trained:
            checkpoint, first = load_checkpoint(find_checkpoint(Path(trained[0]))), loaded[trained[0]]
            given |= {"max_frames": first.max_frames, "max_words": first.max_words}
            if clip is None:
                given |= {"clip": checkpoint.get("clip_name"), "pretrained_dir": checkpoint.get("pretrained_dir")}
        loaded[ZERO_SHOT] = load_run(method=ZERO_SHOT, **given)
    seen = {(run.max_frames, run.clip.image_size): source for source, run in loaded.items()}
    if len(seen) > 1:
        listed = ", ".join(f"{source}: {length} of {size} pixels" for (length, size), source in seen.items())
        raise UserError(f"these runs see different frames of a video ({listed}): give --max_frames, or one at a time")
    return [loaded[source] for source in sources]


def names_of(sources: Sequence[str], runs: Sequence[Run], names: Sequence[str] | None) -> list[str]:
    """What the runs are called: as given, or by their methods and what tells their paths apart.

    Raises:
        UserError: if there are not as many names as runs.
    """
    if names is not None:
        if len(names) != len(sources):
            raise UserError(f"--names: {len(sources)} runs need as many names, found {len(names)}")
        return list(names)
    return [
        "zero-shot" if source == ZERO_SHOT else f"{run.method}\n{end}"
        for source, run, end in zip(sources, runs, tell_apart(sources), strict=True)
    ]


def tell_apart(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of some paths that tell them apart."""
    parts = [Path(path).resolve().parts for path in paths]
    length = 1
    while len({path[-length:] for path in parts}) < len(set(parts)):
        length += 1
    return ["/".join(path[-length:]) for path in parts]


def inspect_all(
    runs: Sequence[Run], videos: Sequence[Path], texts: Sequence[str], rollout: bool = False
) -> list[list[Inspected]]:
    """Each video as each run sees it; texts: none, or one a video."""
    found = []
    for number, video in enumerate(videos):
        frames, count = read_frames(runs[0], video)
        found.append([inspect(run, frames, count, texts[number : number + 1], rollout) for run in runs])
    return found


def attention(args: argparse.Namespace) -> None:
    """What the read-out token attends to, a row a run."""
    if len(args.text) not in (1, len(args.videos)):
        raise UserError(f"--text: give one for all videos, or one for each of {len(args.videos)}")
    if args.rollout and args.layer is not None:
        raise UserError("--rollout goes through all layers: give it without --layer")
    texts = args.text * (len(args.videos) if len(args.text) == 1 else 1)
    runs = load_runs(args.runs, args.clip, args.max_frames, args.max_words)
    names = names_of(args.runs, runs, args.names)
    inspected = inspect_all(runs, args.videos, texts, args.rollout)
    strips = [
        attention_strip(video.name, text, names, of_runs, args.layer)
        for video, text, of_runs in zip(args.videos, texts, inspected, strict=True)
    ]
    write(draw_strips(strips, args.width), args.output)


def attention_strip(
    video: str, text: str, names: Sequence[str], of_runs: Sequence[Inspected], layer: int | None = None
) -> Strip:
    """A video, a row a run with its attention, or its rollout where that was asked for, and the text's similarity."""
    rows = [Row("frames, as the models see them")]
    for name, found in zip(names, of_runs, strict=True):
        of_layer = check_layer(layer, found)
        maps = found.attention[of_layer] if found.rollout is None else found.rollout
        what = "cosine" if found.is_cosine else "score"
        label = f"{name}\n{what} {in_digits(found.similarity[0])}{merged_in(found, of_layer)}"
        rows.append(Row(label, 100 * maps, "share, %"))
    where = f"layer {of_layer}" if of_runs[0].rollout is None else "rollout over all layers"
    return Strip(
        f"{video}: “{text}”. Attention of the read-out token to each frame's patches, {where}", of_runs[0].frames, rows
    )


def merged_in(found: Inspected, layer: int) -> str:
    """A line that names the frames that a layer has as one; nothing where it has each for itself."""
    groups = found.groups[layer]
    return f"\nmerged: {ranges(groups)}" if any(len(group) > 1 for group in groups) else ""


def regions(args: argparse.Namespace) -> None:
    """The chosen patches of each frame, and what they were chosen by."""
    runs = load_runs(args.runs, args.clip, args.max_frames, args.max_words)
    names = names_of(args.runs, runs, args.names)
    strips = [
        region_strip(video.name, args.runs, names, runs, of_runs, args.layer, args.maps)
        for video, of_runs in zip(args.videos, inspect_all(runs, args.videos, ()), strict=True)
    ]
    write(draw_strips(strips, args.width), args.output)


def region_strip(
    video: str,
    sources: Sequence[str],
    names: Sequence[str],
    runs: Sequence[Run],
    of_runs: Sequence[Inspected],
    layer: int | None = None,
    with_maps: bool = False,
) -> Strip:
    """A video, a row a run with its chosen patches, and with maps of what they were chosen by.

    Raises:
        UserError: naming a run that chooses none in that layer, or has no such maps.
    """
    rows = []
    for source, name, run, found in zip(sources, names, runs, of_runs, strict=True):
        of_layer = layer_with("discriminative_regions", source, layer, found)
        details, groups = found.layers[of_layer], found.groups[of_layer]
        label = f"{name}\nlayer {of_layer}{merged_in(found, of_layer)}"
        rows.append(Row(label, chosen=spread(details["discriminative_regions"] > 0.5, groups)))
        if with_maps and "region_scores" not in details:
            raise UserError(f"--maps: {source} chooses its regions at random, not by A, M and Wˢ")
        if with_maps:
            units = UNITS | {"temporal_dynamics": UNITS_OF_DYNAMICS[run.settings.dynamics_norm]}
            rows += [Row(title, spread(details[key], groups), units[key]) for key, title in MAPS.items()]
    return Strip(f"{video}: chosen patches", of_runs[0].frames, rows)


def timeline(args: argparse.Namespace) -> None:
    """What changes in the gaps, and how many temporal prompts they get."""
    runs = load_runs(args.runs, args.clip, args.max_frames, args.max_words)
    names = names_of(args.runs, runs, args.names)
    lines = [
        timeline_of(video.name, source, name, run, found, args.layer)
        for video, of_runs in zip(args.videos, inspect_all(runs, args.videos, ()), strict=True)
        for source, run, name, found in zip(args.runs, runs, names, of_runs, strict=True)
    ]
    write(draw_timelines(lines, args.width), args.output)


def timeline_of(video: str, source: str, name: str, run: Run, found: Inspected, layer: int | None = None) -> Timeline:
    """What changes in a video by a run.

    Raises:
        UserError: naming the run, if it has no temporal prompts in that layer.
    """
    eta = getattr(run.settings, "eta", 0)
    if len(found.frames) == 1 and eta > 0:  # of which no layer has a gap
        of_layer, change, tokens = check_layer(layer, found), np.zeros(0), np.zeros(0, int)
    else:
        of_layer = layer_with("frame_variation", source, layer, found)
        change, tokens = (found.layers[of_layer][key] for key in ("frame_variation", "num_temporal_prompts"))
    title = f"{video}: what changes in each gap, {' '.join(name.split())}, layer {of_layer}"
    return Timeline(title, found.frames, change, tokens, math.ceil(eta), found.groups[of_layer])


def layer_with(name: str, source: str, layer: int | None, found: Inspected) -> int:
    """`check_layer` of a run.

    Raises:
        UserError: naming the run.
    """
    try:
        return check_layer(layer, found, name)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def errors(args: argparse.Namespace) -> None:
    """What a run gets wrong."""
    title, headings, mistakes = find_mistakes(args.run, args.count, args.more)
    write(draw_mistakes(title, headings, mistakes, args.width), args.output)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for draw in (attention, regions, timeline):
        part = kinds.add_parser(draw.__name__, help=draw.__doc__)
        part.set_defaults(draw=draw)
        part.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="video files, of any length and size")
        part.add_argument("--runs", nargs="+", required=True, metavar="RUN", help="folder, checkpoint or zero_shot")
        part.add_argument("--names", nargs="+", metavar="NAME", help="what the runs are called in the picture")
        part.add_argument("--clip", metavar="NAME", help="the runs' CLIP, a name or a path (default: the trainings')")
        part.add_argument("--max_frames", type=int, metavar="FRAMES", help="instead of the trainings'")
        part.add_argument("--max_words", type=int, metavar="TOKENS", help="instead of the trainings'")
        part.add_argument("--layer", type=int, help="of the tower, from 0 (default: the last that has what is drawn)")
        if draw is attention:
            part.add_argument("--text", nargs="+", required=True, help="one for all videos, or one for each")
            part.add_argument("--rollout", action="store_true", help="attention followed through all layers")
        if draw is regions:
            part.add_argument("--maps", action="store_true", help="A, M and Wˢ, too")
    part = kinds.add_parser("errors", help=errors.__doc__, description=errors.__doc__)
    part.set_defaults(draw=errors)
    part.add_argument("run", type=Path, metavar="RUN", help="folder of a training or an evaluation")
    part.add_argument("--count", type=int, default=5, metavar="ROWS", help="the worst so many (default: 5)")
    part.epilog = "Flags of the run's main program, such as --packed FOLDER, override the run's own."
    for name, part in kinds.choices.items():
        output = Path(f"{name}.png")
        part.add_argument("--output", type=Path, default=output, metavar="FILE", help="(default: %(default)s)")
        part.add_argument("--width", type=float, default=WIDTH, metavar="INCHES", help="(default: %(default)s)")
    args, more = parser.parse_known_args(argv)
    if more and args.kind != "errors":
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if args.width < LEAST_WIDTH:
        parser.error(f"--width must be at least {LEAST_WIDTH}")
    if getattr(args, "count", 1) < 1:
        parser.error("--count must be at least 1")
    args.more = more
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line says."""
    args = parse_args(argv)
    try:
        args.draw(args)
    except (UserError, BadVideoError) as error:
        sys.exit(f"error: {error}")
    print(args.output)


if __name__ == "__main__":
    main()
