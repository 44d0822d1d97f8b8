"""Embedding an evaluation set, each item once, on the process whose turn it is."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.files import write_whole
from common.progress import Progress
from dataloaders.bad_videos import LEAVE_OUT_BAD
from dataloaders.batches import evaluation_loader
from dataloaders.items import EvaluationDataset
from modules.model.measures import add_up, means, numbers
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.runtime.processes import Processes
from modules.runtime.run_folder import make_folder

logger = logging.getLogger("stop")

# all that a run saves of embeddings, of either task
FEATURE_FILES = (
    "text.npy",
    "video.npy",
    *(f"{name}.txt" for name in ("text_ids", "video_ids", "captions", "sets", "labels")),
)
PAIRS = 4096  # of a text and a video, scored at a time


@torch.no_grad()
def embed_items(
    model: VideoTextModel,
    dataset: EvaluationDataset,
    items: Sequence[int],
    batch_size: int,
    num_workers: int,
    compute: Compute,
    remedy: str = LEAVE_OUT_BAD,
) -> tuple[np.ndarray, dict[str, float]]:
    """Embed videos of a dataset.

    A video that cannot be read is an error, or with the dataset's `drop_bad` among its `dropped` from then on.

    Args:
        model: in eval mode.
        items: which of the dataset's items, in the order wanted.
        batch_size: videos at a time, on each process. num_workers: decoding workers a process.
        compute: where.
        remedy: what the error about a bad video says to do.

    Returns:
        (len(items), E) or (len(items), T, E) float32, rows of dropped videos are zero; and the means of what was
        measured, over all items that could be read, by name. The same on every process.

    Raises:
        BadVideoError: if a video cannot be decoded; leaving it out would change a metric.
        UserError: if none can.
    """
    processes = compute.processes
    mine = items[processes.rank :: processes.world_size]
    places = {item: place for place, item in enumerate(mine)}
    loader = evaluation_loader(dataset, mine, batch_size, num_workers, pin=processes.device.type == "cuda")
    rows, measures, failed = None, {}, []
    progress = Progress(
        len(loader), "evaluation", "batch", "batches", say=logger.info, shown=processes.is_main, leave=False
    )
    with progress, processes.reading(dataset.being_read):
        for batch, bad in loader:
            if bad and not dataset.drop_bad:
                bad[0].raise_error(remedy)
            failed += [(dataset.sample_of(item.index).video_id, item.reason) for item in bad]
            if batch is not None:
                batch = batch.to(processes.device)
                with compute.precision.autocast():
                    output = model.encode_video(batch.frames, batch.num_frames)
                embedded = output["embedding"].float().cpu()
                measures = add_up(measures, output.get("measures", {}))
                if rows is None:
                    rows = torch.zeros(len(mine), *embedded.shape[1:])
                rows[[places[item] for item in batch.indices.tolist()]] = embedded
            progress.update()
    dataset.drop(dict(processes.gather_list(failed)))
    embeddings = gather_strided([] if rows is None else [rows], len(items), processes)
    return embeddings, means(processes.gather_objects(numbers(measures)))


def gather_strided(rows: list[Tensor], total: int, processes: Processes) -> np.ndarray:
    """Rows that the ranks took in turn, in their first order again.

    Args:
        rows: this rank's, in parts of (n, …).
        total: of all ranks.

    Returns:
        (total, …) float32; rows of a rank without any are zero.

    Raises:
        UserError: if no rank has rows.
    """
    mine = torch.cat(rows).float().cpu().numpy() if rows else None
    parts = processes.gather_objects(mine)
    shapes = {part.shape[1:] for part in parts if part is not None}
    if not shapes:
        raise UserError("none of the videos to evaluate on could be read")
    joined = np.zeros((total, *shapes.pop()), dtype=np.float32)
    for rank, part in enumerate(parts):
        if part is not None:
            joined[rank :: processes.world_size] = part
    return joined


def check_searchable(model: VideoTextModel, remedy: str) -> None:
    """Refuse what needs embeddings that say something by themselves.

    Args:
        model: that made them.
        remedy: what to do instead.

    Raises:
        UserError: if the model's head scores pairs.
    """
    if not model.head.is_product:
        raise UserError(
            "this model scores each pair of a text and a video: it has no embeddings that could be saved and searched. "
            f"{remedy} a head that compares embeddings, such as --sim_header meanP"
        )


def prepare_to_save(model: VideoTextModel, folder: Path) -> None:
    """Make the folder that ``--save_features`` names, before anything is computed.

    Raises:
        UserError: if it cannot be made, or the model has no embeddings to save.
    """
    check_searchable(model, "Leave --save_features out, or train with")
    make_folder(folder, "--save_features")


def save_features(folder: Path, arrays: Mapping[str, np.ndarray], columns: Mapping[str, Sequence[str]]) -> None:
    """Write embeddings and what their rows are; what is there of an earlier run goes first, so that none are mixed.

    Args:
        folder: that `prepare_to_save` made.
        arrays: ``NAME.npy`` each.
        columns: ``NAME.txt`` each, a row a line.

    Raises:
        UserError: if one cannot be written.
    """
    try:
        for name in FEATURE_FILES:
            (folder / name).unlink(missing_ok=True)
        for name, array in arrays.items():
            write_whole(folder / f"{name}.npy", partial(np.save, arr=array))
        for name, lines in columns.items():
            text = "".join(" ".join(line.splitlines()) + "\n" for line in lines)
            write_whole(folder / f"{name}.txt", lambda file, text=text: file.write(text.encode()))
    except OSError as error:
        raise UserError(
            f"the embeddings cannot be written to {folder}: {error.strerror or error}. Make room on the disk, or give "
            "another --save_features, and evaluate again: --do_eval with --init_model"
        ) from error
    logger.info("embeddings are in %s", folder)


@torch.no_grad()
def score_pairs(model: VideoTextModel, text: np.ndarray, video: np.ndarray, compute: Compute) -> np.ndarray:
    """Similarities by a head that takes pairs, a block of texts at a time, each on the process whose turn it is.

    Args:
        model: in eval mode.
        text: (N, …), video: (M, …), the embeddings that the model made.

    Returns:
        (N, M) float32, the same on every process.
    """
    processes = compute.processes
    device, dtype = processes.device, compute.precision.dtype
    mine = torch.from_numpy(text[processes.rank :: processes.world_size])
    size = max(1, PAIRS // len(video))  # texts at a time
    videos = torch.from_numpy(video).split(PAIRS)
    rows = []
    with Progress(
        -(-len(mine) // size), "scoring pairs", "block", "blocks", say=logger.info, shown=processes.is_main, leave=False
    ) as progress:
        for block in mine.split(size):
            block = block.to(device, dtype)
            parts = [model.similarity(block, part.to(device, dtype)).float().cpu() for part in videos]
            rows.append(torch.cat(parts, dim=1))
            progress.update()
    return gather_strided(rows, len(text), processes)
