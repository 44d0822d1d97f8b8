"""Videos and captions as tensors, an item a sample: one dataset type for training and one for evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.seeds import derive_seed
from dataloaders.bad_videos import BadItem, SkippedVideo
from dataloaders.reading import BeingRead
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.packed import PackReader
from dataloaders.video.preprocessing import resize_and_crop
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler

FRAME_ORDERS = ("ordered", "shuffle")
MAX_REPLACEMENTS = 20


def longest_read(time_limit: float) -> float:
    """Seconds that reading a sample of training may take, with as many others drawn in its stead as may be.

    time_limit: of each video.
    """
    return (1 + MAX_REPLACEMENTS) * time_limit


@dataclass(frozen=True)
class VideoSettings:
    """How a dataset turns a video file into frames.

    Attributes:
        num_frames: T.
        image_size: side of a frame in pixels.
        seed: of every draw.
        horizontal_flip: mirror half of the videos in training.
        decoding: of video files.
        pack: read packed frames instead; None to decode video files.
    """

    num_frames: int
    image_size: int
    seed: int
    horizontal_flip: bool = False
    decoding: DecodingSettings = DecodingSettings()
    pack: PackIndex | None = None

    def make_reader(self) -> VideoReader | PackReader:
        """What reads the samples' frames."""
        if self.pack is not None:
            return PackReader(self.pack)
        return VideoReader(self.decoding)


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
        skipped: the videos that could not be read before this one could, in the order in which they were drawn.
    """

    index: int
    sample: Sample
    caption: str
    frames: Tensor
    num_frames: int
    skipped: tuple[SkippedVideo, ...] = ()


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
        self._being_read = BeingRead()
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

    def being_read(self) -> tuple[str, float] | None:
        """The video that this process or a worker has been reading for longest, and for how many seconds, if any."""
        return _video(self.samples, self._being_read)

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
            place = self.drawn(epoch, index, len(skipped))
            sample = self.samples[place]
            try:
                known = self._reasons.get((epoch, sample_id, len(skipped)))
                if known is not None:
                    raise BadVideoError(sample.path, known)
                with self._being_read.note(place):
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
        self._being_read = BeingRead()

    def __len__(self) -> int:
        return len(self.samples) * self.views.count

    @property
    def kept(self) -> list[Sample]:
        """The samples whose video is not dropped."""
        return [sample for sample in self.samples if sample.video_id not in self.dropped]

    def drop(self, videos: Mapping[str, str]) -> None:
        """Leave out videos, by id, from now on; a later evaluation is then one of the same set."""
        self.dropped |= videos

    def being_read(self) -> tuple[str, float] | None:
        """As in `TrainingDataset`."""
        return _video(self.samples, self._being_read)

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
        with self._being_read.note(index // self.views.count):
            frames, num_frames = read_frames(self.reader, sample, self.settings, sampler, self.views.place(crop))
        if self.frame_order == "shuffle":
            draw = np.random.default_rng(derive_seed(self.settings.seed, "frame order", sample.video_id))
            frames[:num_frames] = frames[:num_frames][torch.from_numpy(draw.permutation(num_frames))]
        return Item(index, sample, sample.captions[0], frames, num_frames)


def _video(samples: Sequence[Sample], being_read: BeingRead) -> tuple[str, float] | None:
    longest = being_read.longest()
    return longest and (str(samples[longest[0]].path), longest[1])


def read_frames(
    reader: VideoReader | PackReader, sample: Sample, settings: VideoSettings, sampler: FrameSampler, place: float = 0.5
) -> tuple[Tensor, int]:
    """A video's frames as the encoder takes them: (T, 3, S, S) uint8, zeros behind the real ones, and their number."""
    decoded = reader.read(sample.path, settings.num_frames, sampler)  # (n, H, W, 3)
    num_frames = len(decoded)
    frames = torch.zeros(settings.num_frames, 3, settings.image_size, settings.image_size, dtype=torch.uint8)
    frames[:num_frames] = resize_and_crop(decoded, settings.image_size, place)
    return frames, num_frames
