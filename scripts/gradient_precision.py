"""How far the gradient under bf16 and fp16 is from that of fp32, where regions and counts are the same and where not.

  python scripts/gradient_precision.py            # writes docs/results/precision.json; some minutes
  python scripts/gradient_precision.py --table    # prints what docs/method.md says of it

For each seed: a random CLIP of the toy CLIP's size, STOP around it with prompters that have an effect, random videos of
which some are padded, and the contrastive loss of a batch. Of the trained parameters' gradients the cosine is taken to
fp32's: with the choices (regions, numbers of tokens) that fp32 made, and with those that the precision makes itself.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest import mock

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.clip.loader import LoadedCLIP
from modules.methods.stop import inter_frame, intra_frame
from modules.methods.stop.stop import StopSettings
from modules.model.video_text import VideoTextModel
from modules.program.build import build_model
from modules.runtime.run_folder import describe_machine, git_commit
from modules.tasks.losses import symmetric_contrastive_loss
from preprocess import pretrain_toy_clip

RECORD = Path(__file__).resolve().parents[1] / "docs" / "results" / "precision.json"
SEEDS = tuple(range(20))
SCOPES = ("joint", "frame")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_SCALE = 2.0**10  # as fp16 is trained
NUM_FRAMES, NUM_VIDEOS, MAX_WORDS = 5, 6, 12
NUM_LEAST = 5  # parameters whose gradients are named as the least alike
STOP = {"prompt_dropout": 0.0, "spatial_width": 32, "spatial_hidden": 64, "temporal_width": 32}

Choose = Callable[..., object]


class Choices:
    """The choices of a forward pass, in their order: recorded once, then made again as they were."""

    def __init__(self):
        """Nothing is recorded."""
        self._made: list[object] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Within this, choices are made and remembered."""

        def remember(choose: Choose) -> Choose:
            def chosen(*args):
                self._made.append(choose(*args))
                return self._made[-1]

            return chosen

        with self._replaced(remember):
            yield

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Within this, choices are those that were remembered."""
        made = iter(self._made)
        with self._replaced(lambda choose: lambda *args: next(made)):
            yield

    @staticmethod
    @contextlib.contextmanager
    def _replaced(replace: Callable[[Choose], Choose]) -> Iterator[None]:
        with (
            mock.patch.object(intra_frame, "select_regions", replace(intra_frame.select_regions)),
            mock.patch.object(inter_frame, "count_tokens", replace(inter_frame.count_tokens)),
        ):
            yield


def toy_sized_clip(seed: int) -> LoadedCLIP:
    """A CLIP of the toy CLIP's size with random weights."""
    torch.manual_seed(seed)
    model = pretrain_toy_clip.build_model().eval().requires_grad_(False)
    tokenizer = pretrain_toy_clip.build_tokenizer()
    return LoadedCLIP(model, tokenizer, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def make_model(clip: LoadedCLIP, scope: str, seed: int, **settings) -> VideoTextModel:
    """STOP whose spatial prompts, which start at zero, have an effect."""
    model = build_model("stop", StopSettings(attention_scope=scope, **settings), clip, NUM_FRAMES, MAX_WORDS, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = model.video_encoder.prompting.intra_frame.prompter.linear_out
        last.weight.copy_(0.3 * torch.randn(last.weight.shape, generator=generator))
    return model.train()


def gradients(model: VideoTextModel, seed: int, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Of a batch that belongs to a seed, in a precision, None for fp32: the gradients by parameter."""
    size = model.video_encoder.tower.image_size
    generator = torch.Generator().manual_seed(seed)
    shape = (NUM_VIDEOS, NUM_FRAMES, 3, size, size)
    videos = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    num_frames = torch.randint(2, NUM_FRAMES + 1, (NUM_VIDEOS,), generator=generator)
    keys = torch.arange(NUM_VIDEOS) + NUM_VIDEOS * seed
    captions = [f"{word} moving" for word in ("red", "green", "blue", "circle", "cross", "square")]
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        text = model.encode_text(captions, keys)
        video = model.encode_video(videos, num_frames, keys)["embedding"]
    model.zero_grad()
    (symmetric_contrastive_loss(model.similarity(text, video)) * LOSS_SCALE).backward()
    return {name: parameter.grad.clone() for name, parameter in model.trainable_parameters()}


class Cosines(NamedTuple):
    """Cosines of gradients to fp32's, one a seed.

    Attributes:
        fixed, free: of the whole gradient, with fp32's choices and with the precision's own.
        parts: of each parameter's, by name, with fp32's choices.
    """

    fixed: list[float]
    free: list[float]
    parts: dict[str, list[float]]


def cosines(make: Callable[[int], VideoTextModel], dtype: torch.dtype, seeds: Sequence[int]) -> Cosines:
    """Compare a precision's gradients with fp32's.

    Args:
        make: a model for a seed.
        dtype: of the precision.
        seeds: of models and batches.
    """
    found = Cosines([], [], {})
    for seed in seeds:
        model, choices = make(seed), Choices()
        with choices.recorded():
            exact = gradients(model, seed, None)
        with choices.repeated():
            fixed = gradients(model, seed, dtype)
        found.fixed.append(cosine(exact.values(), fixed.values()))
        found.free.append(cosine(exact.values(), gradients(model, seed, dtype).values()))
        for name, gradient in exact.items():
            found.parts.setdefault(name, []).append(cosine([gradient], [fixed[name]]))
    return found


def cosine(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Of two lists of tensors, each taken as one vector."""
    vectors = [torch.cat([part.flatten().double() for part in parts]) for parts in (ours, theirs)]
    return F.cosine_similarity(*vectors, dim=0).item()


def measure(seeds: Sequence[int] = SEEDS) -> dict:
    """What the record holds."""
    rows, lost = [], {}
    for scope in SCOPES:

        def make(seed: int, scope: str = scope) -> VideoTextModel:
            return make_model(toy_sized_clip(seed), scope, seed, **STOP)

        for name, dtype in DTYPES.items():
            found = cosines(make, dtype, seeds)
            for choices in ("fixed", "free"):
                values = getattr(found, choices)
                row = {"scope": scope, "precision": name, "choices": choices}
                rows.append(row | {"median": round(median(values), 5), "smallest": round(min(values), 5)})
                print(rows[-1], flush=True)
            if name == "bf16":
                medians = {part: round(median(values), 5) for part, values in found.parts.items()}
                least = sorted(medians, key=medians.get)[:NUM_LEAST]
                lost[scope] = {part.removeprefix("video_encoder.prompting."): medians[part] for part in least}
    settings = {"seeds": list(seeds), "num_frames": NUM_FRAMES, "num_videos": NUM_VIDEOS, **STOP}
    return {
        "rows": rows,
        "least_in_bf16": lost,
        "settings": settings,
        "git_commit": git_commit(),
        "machine": describe_machine(),
    }


def table(content: Mapping) -> str:
    """What docs/method.md says, in Markdown."""
    lines = ["| gradient's cosine to fp32's | choices of fp32 | its own choices |", "|---|---|---|"]
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in content["rows"]:
        text = f"{row['median']:.4f} (least {row['smallest']:.4f})"
        cells.setdefault((row["precision"], row["scope"]), {})[row["choices"]] = text
    lines += [f"| {name}, {scope} | {cell['fixed']} | {cell['free']} |" for (name, scope), cell in cells.items()]
    least = {part: value for found in content["least_in_bf16"].values() for part, value in found.items()}
    named = ", ".join(f"`{part}` {least[part]:.3f}" for part in sorted(least, key=least.get)[:NUM_LEAST])
    return "\n".join([*lines, "", f"Least alike under bf16, parameter by parameter, with fp32's choices: {named}."])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and record, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=RECORD, metavar="FILE", help="what was measured")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured, and stop")
    args = parser.parse_args(argv)
    if not args.table:
        args.record.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(args.record.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
