"""Whether a training step on videos of 64 frames fits a GPU of 80 GB, counted without one, and what --accumulate costs.

  .venv/bin/python scripts/benchmark/long_videos.py            # writes docs/results/long_videos.json; some minutes
  .venv/bin/python scripts/benchmark/long_videos.py --table    # prints what docs/speed.md says of it

Counted is the most that the tensors of a step hold, see scripts/benchmark/held.py: 16 videos of 64 frames and texts of
64 tokens, as the paper trains on a GPU, in ViT-B/32 and bf16. Measured, on the machine that it runs on, are seconds and
memory of a smaller step, with --accumulate beside the same step without.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from modules.runtime.run_folder import describe_machine, git_commit
from scripts.benchmark.held import count_held, handed_out, held_in
from scripts.benchmark.model import (
    PER_LAYER,
    TEXT,
    TEXT_MERGED,
    Setup,
    in_own_process,
    in_turns,
    make_subject,
    peaks_of_training,
    ratios,
)

RECORD = Path(__file__).resolve().parents[2] / "docs" / "results" / "long_videos.json"
LIMIT = 80e9  # bytes
COUNTED = Setup(16, 64, "cpu", "bf16", threads=1, blank=True, max_words=64)
CHECKED = Setup(1, 12, "cpu", "fp32", threads=1)
MEASURED = Setup(4, 6, "cpu", "fp32", threads=1)
PARTS = 4
ROUNDS = 2
STOP = "STOP, `--text_prompts 8`"
# what is counted: its name, the model, and what is special about its step
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    STOP: (TEXT, {}),
    f"the same, `--accumulate {PARTS}`": (TEXT, {"accumulate": PARTS}),
    "the same, `--merge_frames 4,8`": (TEXT_MERGED, {}),
    "the same, `--checkpoint_activations`": (TEXT, {"checkpointed": True}),
    f"the same, `--checkpoint_activations --accumulate {PARTS}`": (TEXT, {"checkpointed": True, "accumulate": PARTS}),
    "`--method clip4clip`": ("clip4clip", {}),
    f"`--method clip4clip --accumulate {PARTS}`": ("clip4clip", {"accumulate": PARTS}),
    "`--method clip4clip --checkpoint_activations`": ("clip4clip", {"checkpointed": True}),
}


def count(setup: Setup, rows: Mapping[str, tuple[str, dict[str, Any]]] = ROWS) -> list[dict[str, Any]]:
    """``row``, ``bytes`` and ``flops`` of some steps."""
    found = []
    for row, (name, more) in rows.items():
        here = replace(setup, **more)
        held, flops = count_held(make_subject(name, here.load_clip(), here))
        found.append({"row": row, "bytes": held, "flops": flops})
        print(found[-1], file=sys.stderr, flush=True)
    return found


def measure(setup: Setup) -> dict[str, float]:
    """Seconds and peak memory of a step in `PARTS` parts and of one without, and ``seconds_ratio``, ``memory_ratio``.

    The two take turns, and for the memory a process each.
    """
    torch.set_num_threads(setup.threads)
    setups = {"whole": setup, "parts": replace(setup, accumulate=PARTS)}
    clip = setup.load_clip()
    taken = in_turns({key: make_subject(PER_LAYER, clip, one).train for key, one in setups.items()}, ROUNDS, "cpu")
    peaks = {key: in_own_process(peaks_of_training, [PER_LAYER], one)[PER_LAYER] for key, one in setups.items()}
    return {
        **{f"seconds_{key}": round(statistics.median(seconds), 2) for key, seconds in taken.items()},
        "seconds_ratio": round(ratios(taken, "whole")["parts"], 3),
        **{f"mib_{key}": round(peak, 1) for key, peak in peaks.items()},
        "memory_ratio": round(peaks["parts"] / peaks["whole"], 3),
    }


def check(setup: Setup) -> dict[str, int]:
    """What a step that is taken here holds: ``counted``, and ``handed_out`` by PyTorch's allocator, in bytes."""
    torch.set_num_threads(setup.threads)
    train = make_subject(TEXT, setup.load_clip(), setup).train
    train()  # AdamW's first step makes its moments
    return {"counted": held_in(train), "handed_out": handed_out(train)}


def make_record() -> dict[str, Any]:
    """All that is counted and measured, with where and how."""
    settings = {
        name: {key: getattr(setup, key) for key in ("batch_size", "num_frames", "precision")}
        for name, setup in (("counted", COUNTED), ("checked", CHECKED), ("measured", MEASURED))
    }
    settings["counted"]["max_words"] = COUNTED.max_words
    return {
        "counted": count(COUNTED),
        "checked": check(CHECKED),
        "measured": measure(MEASURED),
        "settings": settings,
        "torch": torch.__version__,
        "git_commit": git_commit(),
        "machine": describe_machine(),
    }


def table(content: Mapping[str, Any], benchmark: Mapping[str, Any] | None = None) -> str:
    """What docs/speed.md says, in Markdown.

    Args:
        content: of this program.
        benchmark: what scripts/benchmark.sh measured; None for nothing about it.
    """
    of, one, by = (content["settings"][name] for name in ("counted", "checked", "measured"))
    head = f"{of['batch_size']} videos of {of['num_frames']} frames, {of['max_words']} words, {of['precision']}"
    lines = [f"| {head} | GB held at most | fits 80 GB | TFLOP without attention |", "|---|---|---|---|"]
    for row in content["counted"]:
        fits = "yes" if row["bytes"] <= LIMIT else "no"
        lines.append(f"| {row['row']} | {row['bytes'] / 1e9:.1f} | {fits} | {row['flops'] / 1e12:.1f} |")
    counted, handed = (content["checked"][name] / 1e9 for name in ("counted", "handed_out"))
    found = content["measured"]
    said = (
        f"Of a step that a CPU takes ({one['precision']}, {one['num_frames']} frames, {one['batch_size']} video) the "
        f"count is {counted:.3f} GB where PyTorch's allocator handed out {handed:.3f}."
    )
    growth = f"growth_mib.{of['num_frames']}"
    if benchmark is not None and growth in benchmark:
        extrapolated = benchmark[growth] * 2**20 * of["batch_size"] / 1e9
        said += (
            f" The growth above says as much, more roughly: {benchmark[growth]:,.0f} MiB of resident memory for one "
            f"video in {benchmark['precision']}, {of['batch_size']} times that is {extrapolated:.0f} GB."
        )
    cost = (
        f"Measured on a CPU ({by['precision']}, {by['batch_size']} videos of {by['num_frames']} frames), a step with "
        f"`--accumulate {PARTS}` takes {found['seconds_ratio']:.2f} times the seconds of one without, and "
        f"{found['memory_ratio']:.2f} times its peak memory."
    )
    return "\n".join([*lines, "", said, "", cost])


def main(argv: Sequence[str] | None = None) -> None:
    """Count, measure and record, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what was found")
    parser.add_argument("--table", action="store_true", help="print the table of what was found, and stop")
    args = parser.parse_args(argv)
    if not args.table:
        args.record.write_text(json.dumps(make_record(), indent=2) + "\n", encoding="utf-8")
    records = (args.record, args.record.with_name("benchmark.json"))  # the latter where there is one
    print(table(*(json.loads(path.read_text(encoding="utf-8")) for path in records if path.is_file())))


if __name__ == "__main__":
    main()
