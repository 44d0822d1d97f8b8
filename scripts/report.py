"""One HTML file of some runs: results beside the published ones, curves, settings, and pictures of test videos.

  .venv/bin/python scripts/report.py runs/msrvtt                              # report.html in that folder
  .venv/bin/python scripts/report.py runs/msrvtt runs/msrvtt_vop --output both.html
  .venv/bin/python scripts/report.py runs/msrvtt --videos 5 --features_path /data/videos     # where the videos are now

RUNS are folders of trainings or evaluations, finished or not. The file needs no server and no network. Of the test
videos some are shown, evenly spaced in the evaluation list; --videos 0 shows none, which spares loading the models.
Flags of the main program, such as --packed FOLDER, override the first run's own.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from common.files import write_whole
from common.progress import duration
from dataloaders.video.decoding import BadVideoError
from modules.program.build import find_in_run
from modules.program.inspection import Inspected, inspect
from modules.program.loading import Run
from modules.report import curves, html
from modules.report.mistakes import draw_mistakes
from modules.report.strips import draw_strips, draw_timelines
from modules.runtime.run_folder import CONFIG, METRICS, RESULTS
from modules.tasks.thinned import say_thinned
from scripts.figures.mistakes import checkpoint_of, find_mistakes
from scripts.figures.shown import Shown, test_videos
from scripts.table import Table, place_of, read_run
from scripts.visualize import ZERO_SHOT, attention_strip, load_runs, region_strip, tell_apart, timeline_of

REPORT = "report.html"
VIDEOS, MISTAKES = 3, 5
# of `results.json`, and what they are called
NUMBERS = {
    "t2v_R1": "text→video R@1",
    "t2v_R5": "text→video R@5",
    "t2v_R10": "text→video R@10",
    "t2v_MdR": "text→video median rank",
    "t2v_MnR": "text→video mean rank",
    "v2t_R1": "video→text R@1",
    "v2t_R5": "video→text R@5",
    "v2t_R10": "video→text R@10",
    "v2t_MdR": "video→text median rank",
    "v2t_MnR": "video→text mean rank",
    "top1": "top-1",
    "top5": "top-5",
    "mean_class": "mean class accuracy",
    "tokens_per_gap": "temporal tokens a gap",
    "gaps_without_tokens": "share of gaps without a token",
    "frame_variation": "frame variation Wᵗ, mean",
}
WIDTH, NARROW = 7.0, 3.4  # inches of pictures, the latter on a phone
UNCOMPARED = {"output_dir"}  # settings that differ in any two runs


@dataclass(frozen=True)
class RunFiles:
    """What a run has left.

    Attributes:
        folder: of the run. name: what it is called here.
        config, results: what is in the files of these names; the latter is empty of a run that has not finished.
        metrics: what was logged.
    """

    folder: Path
    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path, name: str) -> "RunFiles":
        """Read a run.

        Raises:
            UserError: if the folder holds none, or a run for each of several splits.
        """
        path = find_in_run(folder, CONFIG, f"{folder} is not the folder of a run: it holds no {CONFIG}")
        results = folder / RESULTS
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            found = json.loads(results.read_text(encoding="utf-8")) if results.is_file() else {}
        except ValueError as error:
            raise UserError(
                f"{folder}: {CONFIG} or {RESULTS} is damaged ({error}); run the same command again"
            ) from error
        return cls(folder, name, config, found, curves.read_metrics(folder / METRICS))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Every setting, by name."""
        return self.config["settings"]


def overview(runs: Sequence[RunFiles]) -> str:
    """What the runs are, a column each."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        results, config = run.results, run.config
        of_run = {
            "folder": str(run.folder),
            "method": run.settings["method"],
            "dataset": run.settings["datatype"],
            "state": "finished" if results else "not finished: its curves so far",
            "trained parameters": f"{results['trainable_parameters']:,}" if "trainable_parameters" in results else "",
            "took": duration(results["seconds"]) if "seconds" in results else "",
            "machine": config.get("machine") or "",
            "code": config.get("git_commit") or "not known",
        }
        for name, value in of_run.items():
            rows.setdefault(name, []).append(value)
    return html.table(["", *(run.name for run in runs)], [[name, *values] for name, values in rows.items()], False)


def results_of(runs: Sequence[RunFiles]) -> str:
    """The metrics of all runs, beside what was published of the first one's method."""
    keys = [key for key in NUMBERS if any(key in run.results for run in runs)]
    if not keys:
        return html.text("No run has finished yet.")
    published, notes = published_of(runs[0])
    rows = []
    for key in keys:
        values = [f"{run.results[key]:.2f}" if key in run.results else "" for run in runs]
        rows.append([NUMBERS[key], *([published.get(key, "")] if published else []), *values])
    notes += [f"{run.name}: {said}." for run in runs if (said := say_thinned(run.results))]
    heads = ["", *(["published"] if published else []), *(run.name for run in runs)]
    return html.table(heads, rows) + html.text(*notes, note=True)


def published_of(run: RunFiles) -> tuple[Mapping[str, str], list[str]]:
    """What was published of a run's method, by key, and what is to be said of it; nothing where nothing was."""
    table = Table.read("retrieval")
    try:
        compared = read_run(run.folder, table)
    except UserError:  # of another task or dataset, or without results
        return {}, []
    number, name = place_of(compared, table)
    if number is None:
        return {}, []
    row = table.rows[number]
    notes = [f"Published: {name}, {row.get('source', table.source)}. These numbers are not of this code."]
    notes += [f"{run.name} is not the measurement that was published: {note}." for note in compared.notes]
    return row["values"], notes


def curves_of(runs: Sequence[RunFiles]) -> str:
    """What was logged, a picture each."""
    drawn = curves.panels_of({run.name: run.metrics for run in runs})
    if not drawn:
        return html.text("Nothing was trained, so that there are no curves.")
    names = ", ".join(run.name for run in runs)
    pictures = [html.picture(figure, f"{panel.title} over the steps of {names}") for panel, figure in drawn]
    return '<div class="curves">\n' + "\n".join(pictures) + "\n</div>"


def settings_of(runs: Sequence[RunFiles]) -> str:
    """In what the runs' settings differ, and all of them, folded."""
    heads = ["setting", *(run.name for run in runs)]
    rows = {
        name: [name, *(_shown(run.settings.get(name)) for run in runs)]
        for name in dict.fromkeys(name for run in runs for name in run.settings)
    }
    different = [row for name, row in rows.items() if name not in UNCOMPARED and len(set(row[1:])) > 1]
    parts = []
    if len(runs) > 1:
        parts.append(html.table(heads, different, False) if different else html.text("No setting differs."))
    parts.append(html.folded("all settings", html.table(heads, rows.values(), False)))
    return "\n".join(parts)


def _shown(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def pictures_of(runs: Sequence[RunFiles], count: int, more: Sequence[str]) -> str:
    """Test videos of the first run as the frozen CLIP and all runs see them, and what the first run gets wrong.

    What cannot be drawn is said in its place.
    """
    trained = [run for run in runs if run.results]
    if not trained:
        return html.text("No run has finished yet.")
    first = trained[0]
    parts = [
        html.text(
            f"{count} of the test videos of {first.name}, evenly spaced in the evaluation list. Attention is that "
            "of the read-out token to each frame's patches, in the last layer, one colour scale a row."
        )
    ]
    try:
        checkpoints = {run.name: checkpoint_of(run.folder, run.settings) for run in trained}
        sources = {"zero-shot": ZERO_SHOT} | {name: str(path) for name, path in checkpoints.items() if path}
        files = {name: given_in(more, name) for name in ("pretrained_clip_name", "pretrained_dir")}
        if len(sources) == 1:  # no checkpoint knows which CLIP it is
            files = {name: value or first.settings[name] for name, value in files.items()}
        # all see as many frames as the first
        loaded = load_runs(
            list(sources.values()),
            *(files["pretrained_clip_name"], first.results["max_frames"], first.results["max_words"]),
            files["pretrained_dir"],
        )
        for video in test_videos(first.folder, loaded[0], count, more):
            parts += video_pictures(video, list(sources.values()), list(sources), loaded)
    except (UserError, BadVideoError) as error:
        parts.append(html.text(f"Videos cannot be shown: {error}"))
    try:
        title, headings, mistakes = find_mistakes(first.folder, MISTAKES, more)
        parts.append(html.picture(draw_mistakes(title, headings, mistakes, WIDTH), title))
    except (UserError, BadVideoError) as error:
        parts.append(html.text(f"What goes wrong cannot be shown: {error}"))
    return "\n".join(parts)


def given_in(flags: Sequence[str], name: str) -> str | None:
    """The value of a flag in a command line; None where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}")
    return getattr(parser.parse_known_args(flags)[0], name)


def video_pictures(video: Shown, sources: Sequence[str], names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Attention, chosen patches and what changes, of a video."""
    found = [inspect(run, video.frames, video.num_frames, [video.text]) for run in runs]
    called = ", ".join(" ".join(name.split()) for name in names)
    strip = attention_strip(video.name, video.text, names, found)
    parts = [in_two_widths(draw_strips, [strip], f"Attention of {called} to the frames of {video.name}")]
    for source, name, run, of_run in zip(sources, names, runs, found, strict=True):
        if _has("discriminative_regions", of_run) and getattr(run.settings, "num_regions", 0):
            strip = region_strip(video.name, [source], [name], [run], [of_run])
            parts.append(in_two_widths(draw_strips, [strip], f"Patches of {video.name} that {source} chooses"))
        if _has("frame_variation", of_run):
            line = timeline_of(video.name, source, name, run, of_run)
            parts.append(in_two_widths(draw_timelines, [line], f"What changes in {video.name} by {source}"))
    return parts


def in_two_widths(draw: Callable[[list[Any], float], Figure], shown: list[Any], description: str) -> str:
    """A picture for a screen and for a phone."""
    return html.picture(draw(shown, WIDTH), description, draw(shown, NARROW))


def _has(detail: str, found: Inspected) -> bool:
    return any(detail in layer for layer in found.layers.values())


def make_report(runs: Sequence[RunFiles], count: int, more: Sequence[str], command: str) -> str:
    """The whole file.

    Args:
        runs: at least one.
        count: test videos that are shown; 0 for none, and nothing that goes wrong.
        more: flags of the first run's main program.
        command: that made it.
    """
    parts = [
        html.section("Runs", overview(runs)),
        html.section("Results", results_of(runs)),
        html.section("Curves", curves_of(runs)),
        html.section("What differs in their settings" if len(runs) > 1 else "Settings", settings_of(runs)),
    ]
    if count:
        parts.append(html.section("Test videos", pictures_of(runs, count, more)))
    return html.page(", ".join(run.name for run in runs), *parts, html.text(f"Made by {command}", note=True))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what it does not know is in ``more``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"(default: {REPORT} in the first run's folder)")
    parser.add_argument("--videos", type=int, default=VIDEOS, metavar="COUNT", help=f"shown (default: {VIDEOS})")
    args, args.more = parser.parse_known_args(argv)
    if args.videos < 0:
        parser.error("--videos must not be negative")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report and print its path."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(argv)
    output = args.output or args.runs[0] / REPORT
    try:
        runs = [RunFiles.read(folder, name) for folder, name in zip(args.runs, tell_apart(args.runs), strict=True)]
        command = shlex.join([".venv/bin/python", "scripts/report.py", *argv])
        content = make_report(runs, args.videos, args.more, command).encode()
    except UserError as error:
        sys.exit(f"error: {error}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, lambda file: file.write(content))
    except OSError as error:
        sys.exit(f"error: {output} cannot be written: {error.strerror or error}")
    print(output)


if __name__ == "__main__":
    main()
