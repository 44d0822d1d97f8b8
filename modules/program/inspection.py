"""What a run makes of one video: what pictures of it are made of, as plain arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings
from modules.program.loading import NO_FILE, Run

# of a prompted layer, what belongs to its frames and to the gaps between them
OF_FRAMES = ("attention_map", "temporal_dynamics", "region_scores", "discriminative_regions")
OF_GAPS = ("frame_variation", "num_temporal_prompts")


@dataclass(frozen=True)
class Inspected:
    """A video as a model sees it; n of its frames are real, layers count from 0.

    Attributes:
        frames: (n, S, S, 3) uint8.
        attention: (L, n, G, G), ``readout_attention`` of each layer.
        rollout: (n, G, G), or None where it was not asked for.
        groups: of each layer the frames, from 1, that each of its frames stands for.
        layers: of each prompted layer what was asked for by name: with a row for each of its frames, patches as
            (G, G), or for each gap.
        similarity: of each text, the cosine or what the head scores.
        is_cosine: which of the two.
    """

    frames: np.ndarray
    attention: np.ndarray
    rollout: np.ndarray | None
    groups: list[list[tuple[int, ...]]]
    layers: Mapping[int, Mapping[str, np.ndarray]]
    similarity: list[float]
    is_cosine: bool


def read_frames(run: Run, path: Path, video_time_limit: float = 60.0) -> tuple[torch.Tensor, int]:
    """The frames that a run sees of a video file: (T, 3, S, S) uint8, and how many are real.

    Raises:
        BadVideoError: if the file is missing or cannot be decoded.
    """
    if not path.is_file():
        raise BadVideoError(path, NO_FILE)
    decoding = DecodingSettings(video_time_limit=video_time_limit, decoder_errors=run.decoder_errors)
    settings = VideoSettings(run.max_frames, run.clip.image_size, seed=0, decoding=decoding)
    dataset = EvaluationDataset([Sample(path.name, path.name, path, ("",))], settings)
    try:
        item = dataset.read(0)
    finally:
        dataset.reader.close()
    return item.frames, item.num_frames


@torch.no_grad()
def inspect(
    run: Run, frames: torch.Tensor, num_frames: int, texts: Sequence[str] = (), rollout: bool = False
) -> Inspected:
    """What a run makes of a video's frames.

    Args:
        run: whose model.
        frames: (T, 3, S, S) uint8, real ones first. num_frames: how many are real.
        texts: to compare the video with.
        rollout: whether that is wanted.
    """
    model, compute = run.model, run.compute
    device, grid = compute.processes.device, run.model.video_encoder.tower.grid
    with compute.precision.autocast():
        out = model.encode_video(
            frames[None].to(device),
            torch.tensor([num_frames]),
            return_details=True,
            return_rollout=rollout,
        )
        embedded = model.encode_text(list(texts)) if texts else None
    similarity: list[float] = []
    if embedded is not None:
        kind = {"device": device, "dtype": compute.precision.dtype}
        scores = model.similarity(embedded.to(**kind), out["embedding"].to(**kind))[:, 0].float()
        similarity = (scores / model.head.scale if model.head.is_product else scores).tolist()

    def as_grid(maps: torch.Tensor) -> np.ndarray:
        return maps.float().cpu().numpy().reshape(*maps.shape[:-1], grid, grid)

    layers = {}
    for layer, details in zip(out["prompted_layers"], out["layers"], strict=True):
        count = int((details["frame_sizes"][0] > 0).sum())
        layers[layer] = {name: as_grid(details[name][0, :count]) for name in OF_FRAMES if name in details}
        layers[layer] |= {name: details[name][0, : count - 1].cpu().numpy() for name in OF_GAPS if name in details}
    return Inspected(
        frames[:num_frames].permute(0, 2, 3, 1).numpy(),
        as_grid(out["readout_attention"][:, 0, :num_frames]),
        as_grid(out["attention_rollout"][0, :num_frames]) if rollout else None,
        [groups_of(sizes[0].tolist()) for sizes in out["frame_sizes"]],
        layers,
        similarity,
        model.head.is_product,
    )


def groups_of(sizes: Sequence[float]) -> list[tuple[int, ...]]:
    """The frames, from 1, that each of a layer's frames stands for, by how many these are: 2, 1, 0 → (1, 2), (3,)."""
    groups, first = [], 1
    for size in map(int, sizes):
        if size:
            groups.append(tuple(range(first, first + size)))
        first += size
    return groups


def spread(values: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """A row for each of a layer's frames → one for each frame that they stand for."""
    return np.repeat(values, [len(group) for group in groups], axis=0)


def check_layer(layer: int | None, found: Inspected, prompted: str | None = None) -> int:
    """The layer asked for, or the last there is.

    Args:
        layer: from 0; None for the last.
        found: of a video.
        prompted: what only a prompted layer has, by name; None where any layer will do.

    Raises:
        UserError: if there is no such layer, or it has not got that.
    """
    count = len(found.attention)
    if layer is not None and not 0 <= layer < count:
        raise UserError(f"--layer {layer}: this CLIP has layers 0 to {count - 1}")
    if prompted is None:
        return count - 1 if layer is None else layer
    have = [number for number, details in found.layers.items() if prompted in details]
    if not have:
        raise UserError(f"no layer of this run has {prompted.replace('_', ' ')}")
    if layer is not None and layer not in have:
        raise UserError(f"--layer {layer}: this run prompts before layer {', '.join(map(str, have))} only")
    return have[-1] if layer is None else layer
