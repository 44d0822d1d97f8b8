"""Videos and captions as tensors: one dataset type for every reader."""

import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from common.errors import UserError
from common.seeds import derive_seed
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError, FrameSampler
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.packed import PackReader
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.reader import VideoReader

FRAME_ORDERS = ("ordered", "shuffle")
MAX_REPLACEMENTS = 20
READ_ANOTHER = "Replace this video, or give --on_bad_video skip, which reads another in its stead."
LEAVE_OUT_BAD = "Replace this video, or give --on_bad_eval_video drop, which leaves it out and changes the metrics."


@dataclass(frozen=True)
class VideoSettings:
    """How a dataset turns a video file into frames.

    Attributes:
        num_frames: T.
        image_size: side of a frame in pixels.
        seed: of every draw.
        horizontal_flip: mirror half of the videos in training.
        time_limit: seconds that decoding a video may take.
        reject_damage: take a video for bad where the decoder reports an error, although it returns frames.
        pack: read packed frames, to which the two above do not apply; None to decode video files.
    """

    num_frames: int
    image_size: int
    seed: int
    horizontal_flip: bool = False
    time_limit: float = 60.0
    reject_damage: bool = True
    pack: PackIndex | None = None

    def make_reader(self) -> VideoReader | PackReader:
        """What reads the samples' frames."""
        if self.pack is not None:
            return PackReader(self.pack)
        return VideoReader(self.time_limit, self.reject_damage)


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
class SkippedVideo:
    """A video that was drawn for a sample of training and could not be read.

    Attributes:
        epoch: from 0. sample_id: of the sample that it was drawn for.
        attempt: 0 for the sample's own video, then for those drawn in its stead.
        path, reason: which video, and what is wrong with it.
    """

    epoch: int
    sample_id: str
    attempt: int
    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Item:
    """One sample as tensors.

    Attributes:
        index: the sample's place in its split, also where another was read in its stead.
        sample: the sample that was read.
        caption: the caption drawn for it.
        frames: (T, 3, S, S) uint8, real frames first, zeros behind.
        num_frames: how many are real.
        skipped: the videos that could not be read before this one could, in the order in which they were drawn.
    """

    index: int
    sample: Sample
    caption: str
    frames: Tensor
    num_frames: int
    skipped: tuple[SkippedVideo, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Items side by side.

    Attributes:
        indices: (B,) int64.
        frames: (B, T, 3, S, S) uint8.
        num_frames: (B,) int64.
        video_ids, captions: B strings each.
        labels: B class indices; None in retrieval.
        skipped: of all items.
    """

    indices: Tensor
    frames: Tensor
    num_frames: Tensor
    video_ids: list[str]
    captions: list[str]
    labels: list[int | None]
    skipped: list[SkippedVideo]

    def pin_memory(self) -> "Batch":
        """The same batch with its frames in page-locked memory, from where they are copied to a GPU in passing."""
        return replace(self, frames=self.frames.pin_memory(), num_frames=self.num_frames.pin_memory())

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its frames on a device; the indices stay on the CPU."""
        frames = self.frames.to(device, non_blocking=True)
        return replace(self, frames=frames, num_frames=self.num_frames.to(device, non_blocking=True))


@dataclass(frozen=True)
class BadItem:
    """What a worker returns for an item that could not be read.

    Raised in the worker, the error would arrive as a text with the worker's traceback, without path and reason.
    """

    index: int
    path: str
    reason: str

    def raise_error(self, remedy: str = "") -> NoReturn:
        """Raise what was raised in the worker, and say what to do.

        As a new error: one that its own traceback leads back to would keep the data loader alive.

        Raises:
            BadVideoError: always.
        """
        raise BadVideoError(self.path, self.reason, remedy)


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
        [item.sample.label for item in good],
        [video for item in good for video in item.skipped],
    )
    return batch, bad


class TrainingDataset(Dataset):
    """Samples for training: one random frame a segment, a random caption where a sample has several.

    Items are asked for as (epoch, index), and are a function of these and the seed alone, but for videos that the clock
    decides about (`replay`).
    """

    def __init__(self, samples: Sequence[Sample], settings: VideoSettings, replace_bad: bool):
        """replace_bad: read another sample, drawn for this epoch and index, where a video is bad; else raise."""
        self.samples = samples
        self.settings = settings
        self.replace_bad = replace_bad
        self.reader = settings.make_reader()
        self._reasons: dict[tuple[int, str, int], str] = {}  # by epoch, sample and attempt

    def __len__(self) -> int:
        return len(self.samples)

    def drawn(self, epoch: int, index: int, attempt: int) -> int:
        """The place of the sample that is read for another: at attempt 0 its own, then those drawn in its stead."""
        if attempt == 0:
            return index
        draw = np.random.default_rng(derive_seed(self.settings.seed, "replacement", epoch, index, attempt))
        return int(draw.integers(len(self.samples)))

    def count_videos(self, skipped: Sequence[SkippedVideo]) -> int:
        """How many videos these are: each once, however often it was drawn and from whichever folder it was read."""
        wanted = {video.sample_id for video in skipped}
        places = {s.sample_id: index for index, s in enumerate(self.samples) if s.sample_id in wanted}
        drawn = {self.drawn(video.epoch, places[video.sample_id], video.attempt) for video in skipped}
        return len({self.samples[index].video_id for index in drawn})

    def replay(self, skipped: Sequence[SkippedVideo]) -> None:
        """Take these videos for bad again when they are drawn for the same samples, without reading them.

        A video that took too long may be read in time when a run is resumed; what was trained on would be another.
        """
        self._reasons = {(video.epoch, video.sample_id, video.attempt): video.reason for video in skipped}

    def __getitem__(self, key: tuple[int, int]) -> Item | BadItem:
        """What `read` returns, or what it raises as a value."""
        try:
            return self.read(*key)
        except BadVideoError as error:
            return BadItem(key[1], str(error.path), error.reason)

    def read(self, epoch: int, index: int) -> Item:
        """Read a sample.

        Raises:
            BadVideoError: if its video is bad, or with `replace_bad` if many drawn in its stead were bad too.
        """
        sample_id = self.samples[index].sample_id
        skipped: list[SkippedVideo] = []
        while True:
            sample = self.samples[self.drawn(epoch, index, len(skipped))]
            try:
                known = self._reasons.get((epoch, sample_id, len(skipped)))
                if known is not None:
                    raise BadVideoError(sample.path, known)
                return self._read(epoch, index, sample, tuple(skipped))
            except BadVideoError as error:
                skipped.append(SkippedVideo(epoch, sample_id, len(skipped), str(error.path), error.reason))
                if not self.replace_bad:
                    raise
                if len(skipped) > MAX_REPLACEMENTS:
                    tried = f"{error.reason}; {MAX_REPLACEMENTS} others drawn for {sample_id} before it were bad too"
                    raise BadVideoError(error.path, tried) from error

    def _read(self, epoch: int, index: int, sample: Sample, skipped: tuple[SkippedVideo, ...]) -> Item:
        seed = self.settings.seed
        sampler = FrameSampler(derive_seed(seed, "frames", epoch, index))
        frames, num_frames = read_frames(self.reader, sample, self.settings, sampler)
        draw = np.random.default_rng(derive_seed(seed, "caption", epoch, index))
        caption = sample.captions[int(draw.integers(len(sample.captions)))]
        if self.settings.horizontal_flip and derive_seed(seed, "flip", epoch, index) % 2:
            frames = frames.flip(-1)
        return Item(index, sample, caption, frames, num_frames, skipped)


class EvaluationDataset(Dataset):
    """Samples for evaluation: the middle frame of each segment, the first caption.

    With several views of a video its items follow each other.

    Attributes:
        dropped: the videos that are left out because they could not be read, by id, with the reason.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        settings: VideoSettings,
        frame_order: str = "ordered",
        views: Views | None = None,
        drop_bad: bool = False,
    ):
        """Put the parts together.

        Args:
            frame_order: "ordered", or "shuffle" for a seeded shuffle of each video's real frames.
            views: None for 1.
            drop_bad: leave out a video that cannot be read, which changes the metric; else it is an error.
        """
        self.samples = samples
        self.settings = settings
        self.frame_order = frame_order
        self.views = views or Views()
        self.drop_bad = drop_bad
        self.dropped: dict[str, str] = {}
        self.reader = settings.make_reader()

    def __len__(self) -> int:
        return len(self.samples) * self.views.count

    @property
    def kept(self) -> list[Sample]:
        """The samples whose video is not dropped."""
        return [sample for sample in self.samples if sample.video_id not in self.dropped]

    def drop(self, videos: Mapping[str, str]) -> None:
        """Leave out videos, by id, from now on; a later evaluation is then one of the same set."""
        self.dropped |= videos

    def sample_of(self, index: int) -> Sample:
        """The sample that an item is a view of."""
        return self.samples[index // self.views.count]

    def __getitem__(self, index: int) -> Item | BadItem:
        """What `read` returns, or what it raises as a value."""
        try:
            return self.read(index)
        except BadVideoError as error:
            return BadItem(index, str(error.path), error.reason)

    def read(self, index: int) -> Item:
        """Read a sample.

        Raises:
            BadVideoError: if its video is bad; leaving it out would change the metric.
        """
        sample = self.sample_of(index)
        if sample.video_id in self.dropped:
            raise BadVideoError(sample.path, self.dropped[sample.video_id])
        clip, crop = divmod(index % self.views.count, self.views.num_crops)
        sampler = FrameSampler(clip=clip, num_clips=self.views.num_clips)
        frames, num_frames = read_frames(self.reader, sample, self.settings, sampler, self.views.place(crop))
        if self.frame_order == "shuffle":
            draw = np.random.default_rng(derive_seed(self.settings.seed, "frame order", sample.video_id))
            frames[:num_frames] = frames[:num_frames][torch.from_numpy(draw.permutation(num_frames))]
        return Item(index, sample, sample.captions[0], frames, num_frames)


def read_frames(
    reader: VideoReader | PackReader, sample: Sample, settings: VideoSettings, sampler: FrameSampler, place: float = 0.5
) -> tuple[Tensor, int]:
    """A video's frames as the encoder takes them: (T, 3, S, S) uint8, zeros behind the real ones, and their number."""
    decoded = reader.read(sample.path, settings.num_frames, sampler)  # (n, H, W, 3)
    num_frames = len(decoded)
    frames = torch.zeros(settings.num_frames, 3, settings.image_size, settings.image_size, dtype=torch.uint8)
    frames[:num_frames] = resize_and_crop(decoded, settings.image_size, place)
    return frames, num_frames


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
