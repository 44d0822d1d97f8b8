"""How far the gradient under bf16 and fp16 is from that of fp32, where regions and counts are the same and where not.

  .venv/bin/python scripts/gradient_precision.py            # writes docs/results/precision.json; some minutes
  .venv/bin/python scripts/gradient_precision.py --table    # prints what docs/method.md says of it

For each seed: a random CLIP of the toy CLIP's size, STOP around it with prompters that have an effect, random videos of
which some are padded, and the contrastive loss of a batch. Of the trained parameters' gradients the cosine is taken to
fp32's: with the choices (regions, numbers of tokens) that fp32 made, and with those that the precision makes itself.
Under bf16 that is done again with one part of the model at a time kept in fp32, which says where it is lost.
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
from torch.utils._pytree import tree_map_only

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
STOP = {"prompt_dropout": 0.0, "spatial_width": 32, "spatial_hidden": 64, "temporal_width": 32}

Choose = Callable[..., object]
Part = tuple[torch.nn.Module, str]  # a module and the name of its method


def parts_of(model: VideoTextModel) -> dict[str, list[Part]]:
    """The parts of a model that are kept in fp32, by name."""
    prompting, tower = model.video_encoder.prompting, model.video_encoder.tower
    intra, inter = (prompting.intra_frame, "forward"), (prompting.inter_frame, "forward")
    blocks = [(block, "forward") for block in tower.blocks]
    return {
        "nothing": [],
        "intra-frame prompting": [intra],
        "inter-frame prompting": [inter],
        "both": [intra, inter],
        "last block": blocks[-1:],
        "all blocks": blocks,
        "projection": [(tower, "project")],
    }


@contextlib.contextmanager
def in_fp32(parts: Sequence[Part]) -> Iterator[None]:
    """Within this, parts of a model compute in fp32, of what comes to them in lower precision, too."""

    def exact(method: Callable) -> Callable:
        def call(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                args, kwargs = tree_map_only(
                    Tensor, lambda x: x.float() if x.is_floating_point() else x, (args, kwargs)
                )
                return method(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for module, name in parts:
            stack.enter_context(mock.patch.object(module, name, exact(getattr(module, name))))
        yield


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
        kept: of the whole gradient, with fp32's choices, by the part that is kept in fp32.
    """

    fixed: list[float]
    free: list[float]
    kept: dict[str, list[float]]


def cosines(
    make: Callable[[int], VideoTextModel], dtype: torch.dtype, seeds: Sequence[int], by_part: bool = False
) -> Cosines:
    """Compare a precision's gradients with fp32's.

    Args:
        make: a model for a seed.
        dtype: of the precision.
        seeds: of models and batches.
        by_part: also with one part at a time in fp32.
    """
    found = Cosines([], [], {})
    for seed in seeds:
        model, choices = make(seed), Choices()
        with choices.recorded():
            exact = gradients(model, seed, None)
        with choices.repeated():
            found.fixed.append(cosine(exact.values(), gradients(model, seed, dtype).values()))
        found.free.append(cosine(exact.values(), gradients(model, seed, dtype).values()))
        for name, parts in parts_of(model).items() if by_part else ():
            with in_fp32(parts), choices.repeated():
                values = gradients(model, seed, dtype).values()
            found.kept.setdefault(name, []).append(cosine(exact.values(), values))
    return found


def cosine(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Of two lists of tensors, each taken as one vector."""
    vectors = [torch.cat([part.flatten().double() for part in parts]) for parts in (ours, theirs)]
    return F.cosine_similarity(*vectors, dim=0).item()


def measure(seeds: Sequence[int] = SEEDS) -> dict:
    """What the record holds."""
    rows, kept = [], {}
    for scope in SCOPES:

        def make(seed: int, scope: str = scope) -> VideoTextModel:
            return make_model(toy_sized_clip(seed), scope, seed, **STOP)

        for name, dtype in DTYPES.items():
            found = cosines(make, dtype, seeds, by_part=name == "bf16")
            for choices in ("fixed", "free"):
                values = getattr(found, choices)
                row = {"scope": scope, "precision": name, "choices": choices}
                rows.append(row | {"median": round(median(values), 5), "smallest": round(min(values), 5)})
                print(rows[-1], flush=True)
            if name == "bf16":
                kept[scope] = {
                    part: {"median": round(median(values), 5), "smallest": round(min(values), 5)}
                    for part, values in found.kept.items()
                }
    settings = {"seeds": list(seeds), "num_frames": NUM_FRAMES, "num_videos": NUM_VIDEOS, **STOP}
    return {
        "rows": rows,
        "kept_in_fp32": kept,
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
    kept = content["kept_in_fp32"]
    lines += ["", f"| bf16, choices of fp32, kept in fp32 | {' | '.join(kept)} |", "|---" * (1 + len(kept)) + "|"]
    for part in next(iter(kept.values())):
        cells_of = [f"{of[part]['median']:.4f} (least {of[part]['smallest']:.4f})" for of in kept.values()]
        lines.append(f"| {part} | {' | '.join(cells_of)} |")
    return "\n".join(lines)


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
