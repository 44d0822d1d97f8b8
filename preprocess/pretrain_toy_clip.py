"""Trains the toy CLIP, on still images only, and saves it as an open_clip model folder.

    python preprocess/pretrain_toy_clip.py --output_dir runs/toy/clip
    python preprocess/pretrain_toy_clip.py --output_dir runs/toy/clip_events --level events

A few minutes on two cores. Half of the stills name one or two objects and where they are, half show an object
with a motion trail and name the motion (see `toy/shapes.py`). So the model has motion words, but has never
seen a sharp frame as part of a movement: mean pooling its frame embeddings says next to nothing about the
motion of a toy video. Each level of the dataset has a CLIP of its own; stills of level `events` are described in
`toy/events.py`.

The model is saved only if it does on fresh stills what the toy experiments rely on (`Bars`), and if its text
tower tells every two motion captions apart. It then loads without network:

    open_clip.create_model_and_transforms("local-dir:runs/toy/clip")
    open_clip.get_tokenizer("local-dir:runs/toy/clip")
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.early import say_starting

if __name__ == "__main__":  # here, since what follows takes seconds
    say_starting()

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from safetensors.torch import save

from common.progress import Progress
from preprocess.toy import shapes as toy
from preprocess.toy.events import LEVELS

MODEL_CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": toy.IMAGE_SIZE, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
PREPROCESS_CONFIG = {
    "mean": list(OPENAI_DATASET_MEAN),
    "std": list(OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
CONFIG_NAME, WEIGHTS_NAME = "open_clip_config.json", "open_clip_model.safetensors"  # open_clip's names
RECORD_NAME = "toy_clip.json"
TRAIN_STREAM, HELD_OUT_STREAM = 0, 1


class UnusableModel(Exception):
    """The trained model cannot serve the toy experiments; the message says why."""


@dataclass(frozen=True)
class PretrainSettings:
    seed: int = 0
    steps: int | None = None  # None: the level's
    batch_size: int = 96
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    level: str = "motions"
    renderer_version: int | None = None  # None: the level's

    def __post_init__(self):
        for name, of_level in (("steps", "clip_steps"), ("renderer_version", "renderer_version")):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(LEVELS[self.level], of_level))
        if self.seed < 0 or self.steps < 1:
            raise ValueError(f"seed must be at least 0 and steps at least 1, found {self.seed} and {self.steps}")


@dataclass(frozen=True)
class Bars:
    """What a usable model reaches on stills that it was not trained on.

    `max_cosine`: two captions with a larger cosine count as indistinguishable. Logits are cosines times at
    most 100: at 0.98 a video embedding that lies exactly on one caption prefers it to the other by 2 logits
    at most, and at 1.00 nothing that is trained against a frozen text tower can tell the two apart.
    `stills`: on how many of them the accuracies are taken.
    """

    motion: float = 0.9
    colour: float = 0.95
    shape: float = 0.7
    position: float = 0.2  # learned last, and no toy experiment asks for it
    max_cosine: float = 0.98
    stills: int = 2000


# --- training -----------------------------------------------------------------------------------------------


def build_model() -> open_clip.CLIP:
    return open_clip.CLIP(**MODEL_CONFIG)


@cache
def build_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])


def to_input(images: np.ndarray) -> torch.Tensor:
    """uint8 (N, S, S, 3) to CLIP's normalised float input (N, 3, S, S)."""
    mean, std = (torch.tensor(PREPROCESS_CONFIG[name]).view(3, 1, 1) for name in ("mean", "std"))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255  # (N, 3, S, S)
    return (pixels - mean) / std


def true_captions(stills: toy.Stills) -> torch.Tensor:
    """(N, N) bool: caption j is true of image i, also where it was written for another image.

    Such pairs are no negatives: equal captions, "something moving left" for every object that moves left, and every
    motion of an object in whose picture none is to be seen.
    """
    _, caption = np.unique(np.array(stills.captions), return_inverse=True)
    true = caption[:, None] == caption[None, :]
    motion, looks = stills.motion, stills.colour * len(toy.SHAPES) + stills.shape
    same_motion = (motion[:, None] == motion[None, :]) & (motion >= 0)[:, None]
    same_looks = looks[:, None] == looks[None, :]
    may_be = (motion == toy.NOT_SEEN)[:, None] & (motion != -1)[None, :]
    return torch.from_numpy(true | ((same_motion | may_be) & (same_looks | stills.generic[None, :])))


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, logit_scale: torch.Tensor, true: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross-entropy of unit embeddings (N, D); `true` (N, N) pairs are no negatives."""
    others = true & ~torch.eye(len(image), dtype=torch.bool)
    logits = (logit_scale * image @ text.T).masked_fill(others, float("-inf"))
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate_factor(step: int, settings: PretrainSettings) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))


def train(settings: PretrainSettings) -> open_clip.CLIP:
    """Trains on stills drawn afresh for every step; the next batch is rendered behind the current one."""
    torch.manual_seed(settings.seed)
    model, tokenizer = build_model(), build_tokenizer()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))

    def render(step: int) -> toy.Stills:
        rng = np.random.default_rng([settings.seed, TRAIN_STREAM, step])
        return LEVELS[settings.level].render_stills(rng, settings.batch_size, step / settings.steps)

    progress = Progress(settings.steps, "pre-training", "step", "steps")
    with ThreadPoolExecutor(max_workers=1) as renderer, progress:
        upcoming = renderer.submit(render, 0)
        for step in range(settings.steps):
            stills = upcoming.result()
            upcoming = renderer.submit(render, step + 1)
            image = model.encode_image(to_input(stills.images), normalize=True)
            text = model.encode_text(tokenizer(stills.captions), normalize=True)
            loss = contrastive_loss(image, text, model.logit_scale.exp(), true_captions(stills))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            if step % 20 == 0:
                progress.note(loss=f"{loss.item():.3f}", scale=f"{model.logit_scale.exp().item():.0f}")
            progress.update()
    return model.eval()


# --- what it learned ----------------------------------------------------------------------------------------


@torch.no_grad()
def held_out_accuracies(model: open_clip.CLIP, seed: int, level: toy.Level, num_stills: int) -> dict[str, float]:
    """Zero-shot accuracies on fresh stills, each among captions that differ in that one word alone.

    Motion, colour and shape in stills with a trail, position in stills that name one. Chance is 1/9 for position and
    1/3 for shape; for motions 1/6, in the level `events` 1/12; for colours 1/6, there 1/3.
    """
    stills = level.render_stills(np.random.default_rng([seed, HELD_OUT_STREAM, 0]), num_stills, 1.0)
    image = torch.cat([model.encode_image(part, normalize=True) for part in to_input(stills.images).split(250)])
    counts = level.colours, len(toy.SHAPES), len(level.motions)
    moving = embed_captions(model, level.captions).unflatten(0, counts)  # (colours, 3, motions, D)
    counts = len(toy.SIZES), len(toy.COLOURS), len(toy.SHAPES), len(toy.POSITIONS)
    placed = embed_captions(model, toy.all_position_captions()).unflatten(0, counts)  # (2, 6, 3, 9, D)

    def accuracy(choices: torch.Tensor, image: torch.Tensor, right: np.ndarray) -> float:
        """Of images (n, D) whose nearest one of their choices (n, K, D) is the right one (n,)."""
        chosen = (choices @ image[:, :, None])[:, :, 0].argmax(dim=1)
        return int((chosen.numpy() == right).sum()) / len(right)

    trail = stills.motion >= 0
    colour, shape, motion = stills.colour[trail], stills.shape[trail], stills.motion[trail]
    named = stills.position >= 0
    place = stills.size[named], stills.colour[named], stills.shape[named]
    return {
        "motion": accuracy(moving[colour, shape], image[trail], motion),
        "colour": accuracy(moving[:, shape, motion].transpose(0, 1), image[trail], colour),
        "shape": accuracy(moving.transpose(1, 2)[colour, motion], image[trail], shape),
        "position": accuracy(placed[place], image[named], stills.position[named]),
    }


@torch.no_grad()
def embed_captions(model: open_clip.CLIP, captions: list[str]) -> torch.Tensor:
    """Unit embeddings (N, D)."""
    return model.encode_text(build_tokenizer()(captions), normalize=True)


def closest_captions(embeddings: torch.Tensor, captions: list[str]) -> tuple[float, str, str]:
    """The largest cosine between the embeddings (N, D) of two different captions, and the two."""
    embeddings = F.normalize(embeddings, dim=-1)
    cosine = (embeddings @ embeddings.T).fill_diagonal_(-2.0)
    first, second = divmod(int(cosine.argmax()), len(captions))
    return float(cosine[first, second]), captions[first], captions[second]


def check_captions(embeddings: torch.Tensor, captions: list[str], max_cosine: float) -> float:
    """The largest cosine between two captions; raises `UnusableModel` where it is above `max_cosine`."""
    cosine, first, second = closest_captions(embeddings, captions)
    if not cosine <= max_cosine:
        raise UnusableModel(
            f'the text tower cannot tell "{first}" from "{second}": their cosine is {cosine:.4f}, '
            f"above {max_cosine}. Train for more --steps or try another --seed"
        )
    return cosine


def check_accuracies(accuracies: dict[str, float], bars: Bars) -> None:
    """Raises `UnusableModel` where a held-out accuracy is below its bar."""
    low = [name for name, value in accuracies.items() if not value >= getattr(bars, name)]
    if low:
        found = ", ".join(f"{name} {accuracies[name]:.3f} (needs {getattr(bars, name)})" for name in low)
        raise UnusableModel(f"held-out accuracy too low: {found}. Train for more --steps or try another --seed")


def examine(model: open_clip.CLIP, seed: int, level: toy.Level, bars: Bars) -> dict[str, float]:
    """Prints and returns what the model learned; raises `UnusableModel` where that is not enough."""
    accuracies = held_out_accuracies(model, seed, level, bars.stills)
    print("held-out stills: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
    captions = level.captions + level.class_captions
    embeddings = embed_captions(model, captions)
    cosine, first, second = closest_captions(embeddings, captions)
    print(f'largest cosine between two of {len(captions)} captions: {cosine:.4f} ("{first}", "{second}")')
    check_captions(embeddings, captions, bars.max_cosine)
    check_accuracies(accuracies, bars)
    return {**accuracies, "largest_caption_cosine": cosine}


# --- saving -------------------------------------------------------------------------------------------------


def save_folder(model: open_clip.CLIP, output_dir: Path, record: dict) -> None:
    """Writes an open_clip model folder beside its final place, then renames it: none is ever half-made."""
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as scratch:
        made = Path(scratch) / "clip"
        made.mkdir()
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        (made / WEIGHTS_NAME).write_bytes(save(weights))
        config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
        (made / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        (made / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n")
        if output_dir.exists():
            shutil.rmtree(output_dir)
        made.rename(output_dir)


def pretrain(output_dir: str | Path, settings: PretrainSettings, bars: Bars, overwrite: bool = False) -> Path:
    """Trains, examines and saves; or finds the model made already with the same settings. Returns its folder.

    Raises `UnusableModel`, saving nothing, where the model misses a bar, and `FileExistsError` where the
    folder holds anything else and `overwrite` is not set.
    """
    output_dir = Path(output_dir)
    made_with = {"settings": asdict(settings), "model": MODEL_CONFIG}
    if output_dir.exists():
        record = output_dir / RECORD_NAME
        if record.is_file() and json.loads(record.read_text())["made_with"] == made_with:
            print(f"{output_dir} is there already, made with the same settings.")
            return output_dir
        if not overwrite and (not output_dir.is_dir() or any(output_dir.iterdir())):
            raise FileExistsError(
                f"{output_dir} exists and was made with other settings, or is no toy CLIP; "
                "choose another --output_dir, or give --overwrite to replace it"
            )
    model = train(settings)
    found = examine(model, settings.seed, LEVELS[settings.level], bars)
    found = {name: round(value, 4) for name, value in found.items()}
    save_folder(model, output_dir, {"made_with": made_with, "found": found})
    print(f"toy CLIP in {output_dir}")
    return output_dir


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    default = PretrainSettings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", required=True, help="folder to make")
    parser.add_argument("--level", choices=list(LEVELS), default=default.level, help="of the dataset that it is for")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--steps", type=int, help="training steps of 96 stills, as many as the level needs")
    parser.add_argument("--overwrite", action="store_true", help="replace what other settings made")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one core is busy rendering
    try:
        settings = PretrainSettings(seed=args.seed, steps=args.steps, level=args.level)
        pretrain(args.output_dir, settings, Bars(), overwrite=args.overwrite)
    except (FileExistsError, ValueError, UnusableModel) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
