"""Items side by side: which of them make a batch, each process's share of it, and loaders that read them."""

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from common.errors import UserError
from common.seeds import derive_seed
from dataloaders.bad_videos import READ_ANOTHER, BadItem, SkippedVideo
from dataloaders.items import EvaluationDataset, Item, TrainingDataset

NO_LABEL = -1
ON_DEVICE = ("frames", "video_numbers", "caption_numbers", "labels")  # of a batch


@dataclass(frozen=True)
class Batch:
    """Items side by side.

    Attributes:
        indices: (B,) int64.
        frames: (B, T, 3, S, S) uint8.
        num_frames: (B,) int64.
        video_ids, captions: B strings each.
        video_numbers, caption_numbers: (B,) int64, by which processes compare videos and captions without the strings:
            equal where these are, and but for one pair in 2⁶³ only there.
        labels: (B,) int64, class indices; NO_LABEL in retrieval.
        skipped: of all items.
    """

    indices: Tensor
    frames: Tensor
    num_frames: Tensor
    video_ids: list[str]
    captions: list[str]
    video_numbers: Tensor
    caption_numbers: Tensor
    labels: Tensor
    skipped: list[SkippedVideo]

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from where it is copied to a GPU in passing."""
        return self._change(lambda tensor: tensor.pin_memory(), "num_frames", *ON_DEVICE)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; what the CPU asks for, indices and numbers of frames, stays there."""
        return self._change(lambda tensor: tensor.to(device, non_blocking=True), *ON_DEVICE)

    def is_used_by(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory on the GPU until a stream has done what it was given up to now, whatever stream filled it."""
        for name in ON_DEVICE:
            getattr(self, name).record_stream(stream)

    def _change(self, change: Callable[[Tensor], Tensor], *names: str) -> "Batch":
        return replace(self, **{name: change(getattr(self, name)) for name in names})


def collate(items: Sequence[Item | BadItem]) -> tuple[Batch | None, list[BadItem]]:
    """Put items side by side: those that could be read, None where none could, and the others."""
    bad = [item for item in items if isinstance(item, BadItem)]
    good = [item for item in items if isinstance(item, Item)]
    if not good:
        return None, bad
    batch = Batch(
        torch.tensor([item.index for item in good]),
        torch.stack([item.frames for item in good]),
        torch.tensor([item.num_frames for item in good]),
        [item.sample.video_id for item in good],
        [item.caption for item in good],
        torch.tensor([derive_seed(item.sample.video_id) for item in good]),
        torch.tensor([derive_seed(item.caption) for item in good]),
        torch.tensor([NO_LABEL if item.sample.label is None else item.sample.label for item in good]),
        [video for item in good for video in item.skipped],
    )
    return batch, bad


def check_batch_size(batch_size: int, world_size: int) -> None:
    """Refuse a global batch that the processes cannot share equally.

    Raises:
        UserError: naming the nearest that they can.
    """
    if batch_size >= 1 and batch_size % world_size == 0:
        return
    above = max(1, -(-batch_size // world_size)) * world_size
    nearest = f"{above - world_size} and {above} are" if above > world_size else f"{above} is"
    raise UserError(
        f"--batch_size is the global batch and must be a multiple of the number of processes: "
        f"found {batch_size} for {world_size}; {nearest} the nearest"
    )


def check_parts(parts: int, batch_size: int, world_size: int) -> None:
    """Refuse more parts than a process has samples of the global batch; they need not be equal.

    Raises:
        UserError: naming the most.
    """
    share = batch_size // world_size
    if parts > share:
        raise UserError(
            f"--accumulate {parts}: each of {world_size} process(es) has {share} of the {batch_size} samples of "
            f"--batch_size: give at most {share}"
        )


def check_num_samples(num_samples: int, batch_size: int) -> None:
    """Refuse a training set without one full batch.

    Raises:
        UserError: saying how many samples there are.
    """
    if num_samples < batch_size:
        raise UserError(
            f"the training set has {num_samples} samples, fewer than one batch of {batch_size}: "
            "give a smaller --batch_size"
        )


class GlobalBatches(Sampler):
    """One rank's share of every global batch of an epoch.

    The order is a function of the seed and the epoch; a global batch is cut into equal runs, one a rank, so the ranks
    together see what one process would. The last, incomplete batch is dropped.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, rank: int, world_size: int):
        """batch_size: of the global batch.

        Raises:
            UserError: if the batch cannot be shared equally, or there is not one full batch.
        """
        check_batch_size(batch_size, world_size)
        check_num_samples(num_samples, batch_size)
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.local_size = batch_size // world_size
        self.epoch = 0
        self.first_batch = 0

    def start_at(self, epoch: int, first_batch: int = 0) -> None:
        """Set what the next iteration goes through: an epoch, from a batch on."""
        self.epoch = epoch
        self.first_batch = first_batch

    @property
    def batches_per_epoch(self) -> int:
        """Full batches in an epoch, wherever an iteration starts."""
        return self.num_samples // self.batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch - self.first_batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng(derive_seed(self.seed, "order", epoch)).permutation(self.num_samples)
        for batch in range(self.first_batch, self.batches_per_epoch):
            start = batch * self.batch_size + self.rank * self.local_size
            yield [(epoch, int(index)) for index in order[start : start + self.local_size]]


def training_loader(dataset: TrainingDataset, batches: GlobalBatches, num_workers: int, pin: bool) -> DataLoader:
    """A loader of this rank's share of each global batch."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
        persistent_workers=num_workers > 0,
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def read_batches(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader of a `TrainingDataset`.

    Raises:
        BadVideoError: of the first video that could not be read.
    """
    for batch, bad in loader:
        if bad:
            bad[0].raise_error("" if loader.dataset.replace_bad else READ_ANOTHER)
        yield batch


class Ahead:
    """Batches on a device. On a GPU the next one is copied, by a stream of its own, while the one before is in use."""

    def __init__(self, batches: Iterator[Batch], device: torch.device):
        """batches: on the CPU, in page-locked memory for a GPU."""
        self._batches = batches
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: Batch | Exception | None = None

    def __iter__(self) -> "Ahead":
        return self

    def __next__(self) -> Batch:
        if self._stream is None:
            return next(self._batches).to(self._device)
        if self._next is None:
            self.fetch()
        found, self._next = self._next, None
        if isinstance(found, Exception):
            try:
                raise found
            finally:
                del found  # its traceback leads here, and from here to the loader
        stream = torch.cuda.current_stream(self._device)
        stream.wait_stream(self._stream)
        found.is_used_by(stream)
        return found

    def fetch(self) -> None:
        """Take the next batch and begin to copy it; for when the device has much to do. Nothing on other devices.

        What goes wrong with it is raised when its turn comes.
        """
        if self._stream is None or self._next is not None:
            return
        try:
            batch = next(self._batches)
        except Exception as error:  # or its end
            self._next = error
            return
        with torch.cuda.stream(self._stream):
            self._next = batch.to(self._device)


def evaluation_loader(
    dataset: EvaluationDataset, indices: Sequence[int], batch_size: int, num_workers: int, pin: bool
) -> DataLoader:
    """A loader of some items, in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=list(indices),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Whoever stops a run may signal all of its processes; a worker that left by itself would look like one that died.

    It ends when its parent ends or closes the loader.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
