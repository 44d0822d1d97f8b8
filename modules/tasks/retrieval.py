"""Text–video retrieval: the loss, the evaluation and the embeddings it can leave."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.files import csv_text
from dataloaders.batches import Batch
from dataloaders.items import EvaluationDataset, TrainingDataset
from dataloaders.samples import Sample
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.runtime.processes import Processes
from modules.runtime.run_folder import RunFolder
from modules.tasks.base import ALL
from modules.tasks.embedding import embed_items, gather_strided, prepare_to_save, save_features, score_pairs
from modules.tasks.losses import same_video_or_caption, symmetric_contrastive_loss
from modules.tasks.metrics import LEGEND, Ranking, mean_metrics, rank, rank_embeddings, summary

logger = logging.getLogger("stop")

RANKS = "ranks.csv"
RANK_COLUMNS = ("direction", "text", "video", "rank", "similarity", "first_text", "first_video", "first_similarity")
RANKED_AMONG = {
    "videos": "ranked among videos, of whose captions the best counts",
    "captions": "whose best caption is ranked among the captions of other videos",
}


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of an evaluation set, in annotation order, float32; of unit length where the head is a product.

    Attributes:
        text: (N, E). video: (M, E), or (M, T, E) with a row a frame.
        text_to_video: (N,) int, the row of each caption's video.
        text_ids, captions: N strings each. video_ids: M strings.
        sets: M strings, the set of each video, within which it is ranked; None where there are no sets.
        measured: means over the videos, by name; see `modules.model.measures`.
    """

    text: np.ndarray
    video: np.ndarray
    text_to_video: np.ndarray
    text_ids: list[str]
    captions: list[str]
    video_ids: list[str]
    sets: list[str] | None = None
    measured: Mapping[str, float] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write ``text.npy``, ``video.npy``, ``text_ids.txt``, ``video_ids.txt`` and ``captions.txt``, a row a line.

        And ``sets.txt``, the set of each video, where there are sets. See `save_features`.
        """
        names = ("text_ids", "video_ids", "captions", *(() if self.sets is None else ("sets",)))
        columns = {name: getattr(self, name) for name in names}
        save_features(folder, {"text": self.text, "video": self.video}, columns)

    def parts(self) -> Iterator["Embeddings"]:
        """What is ranked by itself: each set, with its name in `sets`; or everything, where there are no sets."""
        if self.sets is None:
            yield self
            return
        number = np.unique(self.sets, return_inverse=True)[1]  # (M,), of each video's set
        for part in range(number.max() + 1):
            videos = np.flatnonzero(number == part)
            texts = np.flatnonzero(number[self.text_to_video] == part)
            yield Embeddings(
                self.text[texts],
                self.video[videos],
                np.searchsorted(videos, self.text_to_video[texts]),
                [self.text_ids[row] for row in texts],
                [self.captions[row] for row in texts],
                [self.video_ids[row] for row in videos],
                [self.sets[row] for row in videos],
            )


class RetrievalTask:
    """Retrieval on one training and one evaluation set; a `modules.tasks.base.Task`."""

    selection_metric = "t2v_R1"

    def __init__(
        self,
        training_set: TrainingDataset | None,
        evaluation_set: EvaluationDataset,
        mask_same_video: bool,
        batch_size: int,
        num_workers: int,
        save_features: Path | None = None,
        missing: Sequence[tuple[str, str]] = (),
        v2t_ranks: str = "videos",
    ):
        """Put the parts together.

        Args:
            training_set: None to evaluate only.
            evaluation_set: text–video pairs; several pairs may share a video. Where they belong to sets, each set is
                ranked by itself and metrics are the means over sets.
            mask_same_video: take pairs of the same video, and equal captions, out of the negatives.
            batch_size: videos encoded at a time in evaluation, on each process.
            num_workers: decoding workers a process.
            save_features: folder that `report` writes the embeddings to, or None.
            missing: (list, video id) of the videos left out because they have no file.
            v2t_ranks: among what videos with several captions are ranked; see `modules.tasks.metrics.rank`.
        """
        self.training_set = training_set
        self.evaluation_set = evaluation_set
        self.mask_same_video = mask_same_video
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.save_features = save_features
        self.missing = list(missing)
        self.files: dict[str, str] = {}
        self.v2t_ranks = v2t_ranks

    @property
    def identity(self) -> dict[str, str]:
        """`v2t_ranks` where videos have several captions; else a run may go on with either."""
        samples = self.evaluation_set.samples
        return {"v2t_ranks": self.v2t_ranks} if len(samples) > _num_videos(samples) else {}

    @property
    def counts(self) -> dict[str, Any]:
        """How many texts and videos the metrics are of, and how many sets where there are any.

        Where videos have several captions, also the ``protocol``: the queries of each direction, and `v2t_ranks`.
        """
        kept = self.evaluation_set.kept
        counts: dict[str, Any] = {"texts": len(kept), "videos": _num_videos(kept)}
        if sets := _sets(kept):
            counts["sets"] = len(sets)
        if counts["texts"] > counts["videos"]:
            queries = {"t2v_queries": counts["texts"], "v2t_queries": counts["videos"]}
            counts["protocol"] = {**queries, "v2t_ranks": self.v2t_ranks}
        return counts

    @property
    def legend(self) -> str:
        """What the metrics mean."""
        within = "; ranks within each set, means over sets" if _sets(self.evaluation_set.kept) else ""
        return LEGEND + self._protocol(self.evaluation_set.kept) + within

    def _protocol(self, samples: Sequence[Sample]) -> str:
        """The end of a sentence about how several captions a video are evaluated; empty where there is one a video."""
        texts, videos = len(samples), _num_videos(samples)
        if texts == videos:
            return ""
        return (
            f"; several captions a video: t2v has {texts:,} queries, all captions; v2t has {videos:,}, the videos, "
            f"{RANKED_AMONG[self.v2t_ranks]} (--v2t_ranks {self.v2t_ranks})"
        )

    @property
    def captions(self) -> dict[str, list[str]]:
        """All captions that are trained on and evaluated, as listed: one for each time that it is listed."""
        lists = {"evaluation captions": [sample.captions[0] for sample in self.evaluation_set.samples]}
        if self.training_set is None:
            return lists
        return {"training captions": [c for sample in self.training_set.samples for c in sample.captions], **lists}

    @property
    def evaluated_on(self) -> str:
        """How large the evaluation set is."""
        samples = self.evaluation_set.samples
        sets = len(_sets(samples))
        within = f" in {sets} set{'s' * (sets > 1)}, each ranked by itself" if sets else ""
        return f"{len(samples):,} texts and {_num_videos(samples):,} videos{within}{self._protocol(samples)}"

    def num_texts(self, batch: Batch) -> int:
        """A caption a video."""
        return len(batch.captions)

    def encode_texts(
        self, model: VideoTextModel, batch: Batch, keys: Tensor, step_key: Tensor, rows: slice = ALL
    ) -> Tensor:
        """Captions of a batch, (n, E)."""
        return model.encode_text(batch.captions[rows], keys[rows])

    def loss(
        self, model: VideoTextModel, text: Tensor, video: Tensor, batch: Batch, keys: Tensor, processes: Processes
    ) -> Tensor:
        """Symmetric contrastive loss over the global batch."""
        excluded = None
        if self.mask_same_video:
            numbers = torch.stack([batch.video_numbers, batch.caption_numbers], dim=1)
            excluded = same_video_or_caption(*processes.gather_rows(numbers).unbind(1))
        rows = (processes.gather_rows(part) for part in (text, video, keys))
        similarity = model.similarity(*rows)
        return symmetric_contrastive_loss(similarity, excluded)

    def check(self, model: VideoTextModel) -> None:
        """Refuse to save embeddings that cannot be searched, before anything is computed.

        Raises:
            UserError: if the model's head scores pairs, or the folder cannot be made.
        """
        if self.save_features is not None:
            prepare_to_save(model, self.save_features)

    def evaluate(self, model: VideoTextModel, compute: Compute) -> dict[str, float]:
        """R@1, R@5, R@10, median and mean rank in both directions; means over sets where there are any."""
        embeddings = self.embed(model, compute)
        return {**self.metrics(model, embeddings, compute, self.v2t_ranks), **embeddings.measured}

    def report(self, model: VideoTextModel, compute: Compute, folder: RunFolder) -> dict[str, float]:
        """Evaluate, write what each query found to ``ranks.csv``, and the embeddings if wanted."""
        embeddings, is_main = self.embed(model, compute), compute.processes.is_main
        if self.save_features is not None and is_main:
            embeddings.save(self.save_features)
        of_sets, tables = [], [csv_text([RANK_COLUMNS + (() if embeddings.sets is None else ("set",))])]
        for part, found in self.rank(model, embeddings, compute, self.v2t_ranks):
            of_sets.append(summary(found))
            if is_main:
                tables.append(csv_text(rank_rows(part, found)))
        folder.write_text(RANKS, "".join(tables))
        return {**mean_metrics(of_sets), **embeddings.measured}

    @staticmethod
    def metrics(
        model: VideoTextModel, embeddings: Embeddings, compute: Compute, v2t_ranks: str = "videos"
    ) -> dict[str, float]:
        """The metrics of an evaluation set's embeddings, with a bar if it takes long."""
        return mean_metrics([summary(found) for _, found in RetrievalTask.rank(model, embeddings, compute, v2t_ranks)])

    @staticmethod
    def rank(
        model: VideoTextModel, embeddings: Embeddings, compute: Compute, v2t_ranks: str
    ) -> Iterator[tuple[Embeddings, dict[str, Ranking]]]:
        """What is ranked by itself, and its rankings; see `modules.tasks.metrics.rank`."""
        for part in embeddings.parts():
            text, video, text_to_video = part.text, part.video, part.text_to_video
            if model.head.is_product:
                shown = compute.processes.is_main
                yield part, rank_embeddings(text, video, text_to_video, v2t_ranks=v2t_ranks, progress=shown)
            else:
                yield part, rank(score_pairs(model, text, video, compute), text_to_video, v2t_ranks)

    @torch.no_grad()
    def embed(self, model: VideoTextModel, compute: Compute) -> Embeddings:
        """Embed the evaluation set, each item once, on the process whose turn it is; dropped videos are left out.

        Raises:
            BadVideoError: if a video cannot be decoded and is not to be dropped.
        """
        model.eval()
        first_rows: dict[str, int] = {}
        for row, sample in enumerate(self.evaluation_set.samples):
            first_rows.setdefault(sample.video_id, row)
        video, measured = embed_items(
            model,
            self.evaluation_set,
            list(first_rows.values()),
            self.batch_size,
            self.num_workers,
            compute,
        )
        dropped, samples = self.evaluation_set.dropped, self.evaluation_set.kept
        kept = [row for row, video_id in enumerate(first_rows) if video_id not in dropped]
        video_ids = [video_id for video_id in first_rows if video_id not in dropped]
        numbers = {video_id: number for number, video_id in enumerate(video_ids)}
        captions = [sample.captions[0] for sample in samples]
        set_of = {sample.video_id: sample.test_set for sample in samples if sample.test_set is not None}
        return Embeddings(
            text=self._embed_texts(model, captions, compute),
            video=video[kept],
            text_to_video=np.array([numbers[sample.video_id] for sample in samples]),
            text_ids=[sample.sample_id for sample in samples],
            captions=captions,
            video_ids=video_ids,
            sets=[set_of[video_id] for video_id in video_ids] if set_of else None,
            measured=measured,
        )

    def _embed_texts(self, model: VideoTextModel, captions: Sequence[str], compute: Compute) -> np.ndarray:
        processes = compute.processes
        mine = captions[processes.rank :: processes.world_size]
        with compute.precision.autocast():
            rows = [model.encode_text(part) for part in _parts(mine, self.batch_size)]
        return gather_strided(rows, len(captions), processes)


def rank_rows(ranked: Embeddings, found: Mapping[str, Ranking]) -> Iterator[list[str]]:
    """The rows of ``ranks.csv``, a query each.

    Args:
        ranked: what was ranked by itself.
        found: its rankings.

    Yields:
        Direction; text and video, of which one looks for the other, of a video's captions the best; their rank and
        similarity; text (if texts were looked for), video and similarity of what was found first; the set if there are
        sets.
    """
    text_ids, video_ids, video_of = ranked.text_ids, ranked.video_ids, ranked.text_to_video.tolist()
    for direction, ranking in found.items():
        for query, (rank_, right, first, similarity, first_similarity) in enumerate(ranking.rows()):
            if direction == "t2v":
                text, video, first_text, first_video = query, right, "", first
            else:
                text, video, first_text, first_video = right, query, text_ids[first], video_of[first]
            row = [direction, text_ids[text], video_ids[video], f"{rank_:.1f}", f"{similarity:.6f}"]
            row += [first_text, video_ids[first_video], f"{first_similarity:.6f}"]
            yield row if ranked.sets is None else [*row, ranked.sets[video]]


def _num_videos(samples: Sequence[Sample]) -> int:
    return len({sample.video_id for sample in samples})


def _sets(samples: Sequence[Sample]) -> set[str]:
    """The names of the sets that samples belong to; none where there are no sets."""
    return {sample.test_set for sample in samples} - {None}


def _parts(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]
