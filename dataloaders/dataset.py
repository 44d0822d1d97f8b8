"""Videos and captions as tensors: one dataset type for every reader."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dataloaders.preprocessing import resize_and_crop
from dataloaders.samples import Sample
from dataloaders.video import BadVideoError, read_video, sample_frame_indices
from modules.errors import UserError
from modules.randomness import derive_seed

FRAME_ORDERS = ("ordered", "shuffle")
MAX_REPLACEMENTS = 20


@dataclass(frozen=True)
class VideoSettings:
    """How a dataset turns a video file into frames.

    Attributes:
        num_frames: T.
        image_size: side of a frame in pixels.
        seed: of every draw.
        horizontal_flip: mirror half of the videos in training.
    """

    num_frames: int
    image_size: int
    seed: int
    horizontal_flip: bool = False


@dataclass(frozen=True)
class Views:
    """How often a test video is looked at.

    Attributes:
        num_clips: in time, each segment's parts in turn.
        num_crops: in space, evenly along the long side; 1 is the centre.
    """

    num_clips: int = 1
    num_crops: int = 1

    @property
    def count(self) -> int:
        """Views of a video."""
        return self.num_clips * self.num_crops

    def place(self, crop: int) -> float:
        """Where along the long side a crop is cut, 0 to 1."""
        return 0.5 if self.num_crops == 1 else crop / (self.num_crops - 1)


@dataclass(frozen=True)
class Item:
    """One sample as tensors.

    Attributes:
        index: the sample's place in its split, also where another was read in its stead.
        sample: the sample that was read.
        caption: the caption drawn for it.
        frames: (T, 3, S, S) uint8, real frames first, zeros behind.
        num_frames: how many are real.
        bad_videos: the videos that could not be read before this one could.
    """

    index: int
    sample: Sample
    caption: str
    frames: Tensor
    num_frames: int
    bad_videos: tuple[BadVideoError, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Items side by side.

    Attributes:
        indices: (B,) int64.
        frames: (B, T, 3, S, S) uint8.
        num_frames: (B,) int64.
        video_ids, captions: B strings each.
        labels: B class indices; None in retrieval.
        bad_videos: of all items.
    """

    indices: Tensor
    frames: Tensor
    num_frames: Tensor
    video_ids: list[str]
    captions: list[str]
    labels: list[int | None]
    bad_videos: list[BadVideoError]

    def pin_memory(self) -> "Batch":
        """The same batch with its frames in page-locked memory, from where they are copied to a GPU in passing."""
        return replace(self, frames=self.frames.pin_memory(), num_frames=self.num_frames.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its frames on a device; the indices stay on the CPU."""
        frames = self.frames.to(device, non_blocking=True)
        return replace(self, frames=frames, num_frames=self.num_frames.to(device, non_blocking=True))


def collate(items: Sequence[Item | BadVideoError]) -> Batch | BadVideoError:
    """Put items side by side; one that could not be read stands for the batch."""
    for item in items:
        if isinstance(item, BadVideoError):
            return item
    return Batch(
        torch.tensor([item.index for item in items]),
        torch.stack([item.frames for item in items]),
        torch.tensor([item.num_frames for item in items]),
        [item.sample.video_id for item in items],
        [item.caption for item in items],
        [item.sample.label for item in items],
        [bad for item in items for bad in item.bad_videos],
    )


class TrainingDataset(Dataset):
    """Samples for training: one random frame a segment, a random caption where a sample has several.

    Items are asked for as (epoch, index), and are a function of these and the seed alone.
    """

    def __init__(self, samples: Sequence[Sample], settings: VideoSettings, replace_bad: bool):
        """replace_bad: read another sample, drawn for this epoch and index, where a video is bad; else raise."""
        self.samples = samples
        self.settings = settings
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Item | BadVideoError:
        """What `read` gives or raises; see `read_batches` about errors."""
        return _error_as_value(self.read, *key)

    def read(self, epoch: int, index: int) -> Item:
        """Read a sample.

        Raises:
            BadVideoError: if its video is bad, or with `replace_bad` if many drawn in its stead were bad too.
        """
        bad: list[BadVideoError] = []
        chosen = index
        while True:
            try:
                return self._read(epoch, index, chosen, tuple(bad))
            except BadVideoError as error:
                bad.append(error)
                if not self.replace_bad or len(bad) > MAX_REPLACEMENTS:
                    raise
            draw = np.random.default_rng(derive_seed(self.settings.seed, "replacement", epoch, index, len(bad)))
            chosen = int(draw.integers(len(self.samples)))

    def _read(self, epoch: int, index: int, chosen: int, bad: tuple[BadVideoError, ...]) -> Item:
        sample = self.samples[chosen]
        seed = self.settings.seed

        def sample_frames(total: int, num_frames: int) -> np.ndarray:
            # made anew at each call: a decoder that has to start again must get the same frames
            draw = np.random.default_rng(derive_seed(seed, "frames", epoch, index))
            return sample_frame_indices(total, num_frames, draw)

        frames, num_frames = read_frames(sample, self.settings, sample_frames)
        draw = np.random.default_rng(derive_seed(seed, "caption", epoch, index))
        caption = sample.captions[int(draw.integers(len(sample.captions)))]
        if self.settings.horizontal_flip and derive_seed(seed, "flip", epoch, index) % 2:
            frames = frames.flip(-1)
        return Item(index, sample, caption, frames, num_frames, bad)


class EvaluationDataset(Dataset):
    """Samples for evaluation: the middle frame of each segment, the first caption.

    With several views of a video its items follow each other.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: VideoSettings,
        frame_order: str = "ordered",
        views: Views | None = None,
    ):
        """frame_order: "ordered", or "shuffle" for a seeded shuffle of each video's real frames; views: None for 1."""
        self.samples = samples
        self.settings = settings
        self.frame_order = frame_order
        self.views = views or Views()

    def __len__(self) -> int:
        return len(self.samples) * self.views.count

    def __getitem__(self, index: int) -> Item | BadVideoError:
        """What `read` gives or raises; see `read_batches` about errors."""
        return _error_as_value(self.read, index)

    def read(self, index: int) -> Item:
        """Read a sample.

        Raises:
            BadVideoError: if its video is bad; leaving it out would change the metric.
        """
        number, view = divmod(index, self.views.count)
        clip, crop = divmod(view, self.views.num_crops)
        sample = self.samples[number]
        sample_frames = partial(sample_frame_indices, clip=clip, num_clips=self.views.num_clips)
        frames, num_frames = read_frames(sample, self.settings, sample_frames, self.views.place(crop))
        if self.frame_order == "shuffle":
            draw = np.random.default_rng(derive_seed(self.settings.seed, "frame order", sample.video_id))
            frames[:num_frames] = frames[:num_frames][torch.from_numpy(draw.permutation(num_frames))]
        return Item(index, sample, sample.captions[0], frames, num_frames)


def _error_as_value(read: Callable[..., Item], *key: int) -> Item | BadVideoError:
    try:
        return read(*key)
    except BadVideoError as error:
        return error


def read_frames(sample: Sample, settings: VideoSettings, sample_frames, place: float = 0.5) -> tuple[Tensor, int]:
    """A video's frames as the encoder takes them: (T, 3, S, S) uint8, zeros behind the real ones, and their number."""
    decoded, num_frames = read_video(sample.path, settings.num_frames, sample_frames)
    frames = torch.zeros(settings.num_frames, 3, settings.image_size, settings.image_size, dtype=torch.uint8)
    frames[:num_frames] = resize_and_crop(decoded[:num_frames], settings.image_size, place)
    return frames, num_frames


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
        if batch_size < 1 or batch_size % world_size:
            raise UserError(
                f"--batch_size is the global batch and must be a multiple of the number of processes: "
                f"found {batch_size} for {world_size}"
            )
        if num_samples < batch_size:
            raise UserError(
                f"the training set has {num_samples} samples, fewer than one batch of {batch_size}: "
                "give a smaller --batch_size"
            )
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
    )


def read_batches(loader: DataLoader) -> Iterator[Batch]:
    """The batches of a loader.

    A bad video comes out of a worker as a value and is raised here: raised in the worker it would arrive as a text with
    the worker's traceback, without path and reason.

    Raises:
        BadVideoError: of the first video that could not be read.
    """
    for batch in loader:
        if isinstance(batch, BadVideoError):
            raise batch
        yield batch


def evaluation_loader(
    dataset: Dataset, indices: Sequence[int], batch_size: int, num_workers: int, pin: bool
) -> DataLoader:
    """A loader of some items, in order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=list(indices),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin,
    )
