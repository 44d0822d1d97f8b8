"""Embedding an evaluation set, each item once, on the process whose turn it is."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataloaders.dataset import EvaluationDataset, evaluation_loader, read_batches
from modules.precision import Precision
from modules.processes import Processes
from modules.video_text_model import VideoTextModel


@torch.no_grad()
def embed_items(
    model: VideoTextModel,
    dataset: EvaluationDataset,
    items: Sequence[int],
    batch_size: int,
    num_workers: int,
    processes: Processes,
    precision: Precision,
) -> np.ndarray:
    """Embed videos of a dataset.

    Args:
        model: in eval mode.
        items: which of the dataset's items, in the order wanted.
        batch_size: videos at a time, on each process. num_workers: decoding workers a process.

    Returns:
        (len(items), E) float32, the same on every process.

    Raises:
        BadVideoError: if a video cannot be decoded; leaving it out would change a metric.
    """
    mine = items[processes.rank :: processes.world_size]
    loader = evaluation_loader(dataset, mine, batch_size, num_workers, pin=processes.device.type == "cuda")
    embedded = []
    batches = read_batches(loader)
    for batch in tqdm(
        batches, total=len(loader), desc="evaluate", unit="batch", leave=False, disable=not processes.is_main
    ):
        batch = batch.to(processes.device)
        with precision.autocast():
            embedded.append(model.encode_video(batch.frames, batch.num_frames)["embedding"])
    return gather_strided(embedded, len(items), processes)


def gather_strided(rows: list[Tensor], total: int, processes: Processes) -> np.ndarray:
    """Rows that the ranks took in turn, in their first order again.

    Args:
        rows: this rank's, in parts of (n, E).
        total: of all ranks.

    Returns:
        (total, E) float32.
    """
    mine = torch.cat(rows).float().cpu().numpy() if rows else None
    parts = processes.gather_objects(mine)
    joined = np.empty((total, parts[0].shape[1]), dtype=np.float32)
    for rank, part in enumerate(parts):
        if part is not None:
            joined[rank :: processes.world_size] = part
    return joined
