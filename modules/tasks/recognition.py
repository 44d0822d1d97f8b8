"""Action recognition: the loss, the evaluation over views, and the tables and pictures it leaves.

A video's class is the one whose text embedding is nearest.
"""

import hashlib
import io
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.files import csv_text
from dataloaders.batches import Batch
from dataloaders.items import EvaluationDataset, TrainingDataset
from modules.model.dropout import fold_in
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.runtime.processes import Processes
from modules.runtime.run_folder import RunFolder
from modules.tasks.base import ALL
from modules.tasks.embedding import embed_items, prepare_to_save, save_features, score_pairs
from modules.tasks.metrics import DECIMALS, percent

logger = logging.getLogger("stop")

TOP = 5
CONFUSION_AXES = "true class \\ predicted class"  # rows \ columns
LEGEND = (
    "top1, top5: percent of videos whose class is the first, or among the first five, of the model's ranking; "
    "mean_class: the mean over classes of a class's top1"
)


def read_templates(prompt: str) -> list[str]:
    """The class prompts that ``--class_prompt`` names: a template, or a file of templates, one a line.

    Raises:
        UserError: if there is none, or one has no place for the class.
    """
    path = Path(prompt)
    try:
        is_file = path.is_file()
        lines = path.read_text(encoding="utf-8-sig").splitlines() if is_file else [prompt]
    except UnicodeDecodeError as error:
        raise UserError(f"--class_prompt {prompt}: not a UTF-8 text file ({error})") from error
    except OSError:  # too long for a file's name, for one
        is_file, lines = False, [prompt]
    templates = [line.strip() for line in lines if line.strip()]
    if not templates:
        raise UserError(f"--class_prompt {prompt}: the file holds no template")
    for template in templates:
        if "{class}" not in template:
            hint = "" if is_file else " (and there is no such file)"
            raise UserError(f"--class_prompt: {template!r} has no {{class}} in it{hint}")
    return templates


@dataclass(frozen=True)
class Predictions:
    """What a model says of each test video.

    Attributes:
        probabilities: (N, C), mean over views of the softmax over classes.
        labels: (N,) int.
    """

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def ranked(self) -> np.ndarray:
        """(N, C) int, classes by falling probability, ties by lower index."""
        return np.argsort(-self.probabilities, axis=1, kind="stable")

    def metrics(self) -> dict[str, float]:
        """``top1``, ``top5`` and ``mean_class`` (the mean over classes of a class's top-1), in percent."""
        hits = self.ranked[:, :TOP] == self.labels[:, None]
        present = self.labels == np.arange(self.probabilities.shape[1])[:, None]  # (C, N)
        per_class = [percent(hits[rows, 0]) for rows in present if rows.any()]
        return {
            "top1": percent(hits[:, 0]),
            "top5": percent(hits.any(1)),
            "mean_class": math.fsum(per_class) / len(per_class),
        }

    def confusion(self) -> np.ndarray:
        """(C, C) int: how many videos of a class (rows) were taken for each class (columns)."""
        size = self.probabilities.shape[1]
        counts = np.bincount(self.labels * size + self.ranked[:, 0], minlength=size * size)
        return counts.reshape(size, size)


class RecognitionTask:
    """Recognition on one training and one test set; a `modules.tasks.base.Task`."""

    selection_metric = "top1"
    legend = LEGEND

    def __init__(
        self,
        training_set: TrainingDataset | None,
        evaluation_set: EvaluationDataset,
        classes: Sequence[str],
        texts: Sequence[str],
        templates: Sequence[str],
        batch_size: int,
        num_workers: int,
        save_features: Path | None = None,
        files: Mapping[str, str] | None = None,
        missing: Sequence[tuple[str, str]] = (),
    ):
        """Put the parts together.

        Args:
            training_set: None to evaluate only.
            evaluation_set: the test videos, in one or several views each.
            classes: official names, in label order. texts: the words for them, same order.
            templates: class prompts; a class's embedding is their mean.
            batch_size: videos encoded at a time in evaluation, on each process.
            num_workers: decoding workers a process.
            save_features: folder that `report` writes the embeddings to, or None.
            files: small files that belong to the run, by name.
            missing: (list, video id) of the videos left out because they have no file.
        """
        self.training_set = training_set
        self.evaluation_set = evaluation_set
        self.classes = list(classes)
        self.prompts = [template.replace("{class}", text) for text in texts for template in templates]
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.save_features = save_features
        self.files = dict(files or {})
        self.missing = list(missing)
        self.identity = {"class_prompts": hashlib.sha256(repr(self.prompts).encode()).hexdigest()[:16]}

    @property
    def counts(self) -> dict[str, int]:
        """How many texts (classes times templates) and videos the metrics are of."""
        return {"texts": len(self.prompts), "videos": len(self.evaluation_set.kept)}

    @property
    def captions(self) -> dict[str, list[str]]:
        """The texts of the classes."""
        return {"class prompts": self.prompts}

    @property
    def evaluated_on(self) -> str:
        """How large the test set is."""
        views = self.evaluation_set.views.count
        in_views = f", {views} views of each" if views > 1 else ""
        return f"{len(self.evaluation_set.samples):,} videos of {len(self.classes)} classes{in_views}"

    def num_texts(self, batch: Batch) -> int:
        """All classes, whatever the batch."""
        return len(self.classes)

    def encode_texts(
        self, model: VideoTextModel, batch: Batch, keys: Tensor, step_key: Tensor, rows: slice = ALL
    ) -> Tensor:
        """Classes, (n, E)."""
        numbers = torch.arange(len(self.prompts), device=step_key.device)
        return self.class_embeddings(model, fold_in(step_key, numbers), rows)

    def class_embeddings(self, model: VideoTextModel, keys: Tensor | None = None, rows: slice = ALL) -> Tensor:
        """One embedding a class, the mean over its prompts, made unit length if the head needs it: (n, E).

        Args:
            keys: (C · templates,) int64, what dropout is drawn from; in training only.
            rows: a run of the C classes.
        """
        start, stop, _ = rows.indices(len(self.classes))
        templates = len(self.prompts) // len(self.classes)
        among = slice(start * templates, stop * templates)
        prompts = model.encode_text(self.prompts[among], None if keys is None else keys[among])
        return model.mean_text(prompts.unflatten(0, (stop - start, templates)))  # of (n, templates, E)

    def loss(
        self, model: VideoTextModel, text: Tensor, video: Tensor, batch: Batch, keys: Tensor, processes: Processes
    ) -> Tensor:
        """Cross-entropy over the classes, mean over the global batch."""
        *rows, labels = (processes.gather_rows(part) for part in (video, keys, batch.labels))
        return F.cross_entropy(model.similarity(text, *rows).T, labels)

    def check(self, model: VideoTextModel) -> None:
        """Refuse to save embeddings that cannot be searched, before anything is computed.

        Raises:
            UserError: if the model's head scores pairs, or the folder cannot be made.
        """
        if self.save_features is not None:
            prepare_to_save(model, self.save_features)

    def evaluate(self, model: VideoTextModel, compute: Compute) -> dict[str, float]:
        """Top-1, top-5 and mean class accuracy."""
        text, video, measured = self._embed(model, compute)
        return {**self.predict(model, text, video, compute).metrics(), **measured}

    def report(self, model: VideoTextModel, compute: Compute, folder: RunFolder) -> dict[str, float]:
        """Evaluate, and write predictions, per-class accuracy, confusion matrix and, if wanted, the embeddings."""
        text, video, measured = self._embed(model, compute)
        predictions = self.predict(model, text, video, compute)
        if compute.processes.is_main:
            folder.write_text("predictions.csv", self._prediction_table(predictions))
            folder.write_text("per_class.csv", self._class_table(predictions))
            confusion = predictions.confusion()
            rows = [[name, *row] for name, row in zip(self.classes, confusion.tolist(), strict=True)]
            folder.write_text("confusion.csv", csv_text([[CONFUSION_AXES, *self.classes], *rows]))
            folder.write_bytes("confusion.png", draw_confusion(confusion, self.classes))
            if self.save_features is not None:
                self._save_features(text, video)
        return {**predictions.metrics(), **measured}

    @torch.no_grad()
    def _embed(self, model: VideoTextModel, compute: Compute) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Class texts (C, E) and test videos that are not dropped (N, views, …), float32; means of all views."""
        model.eval()
        with compute.precision.autocast():
            text = self.class_embeddings(model).float().cpu().numpy()
        items = range(len(self.evaluation_set))
        video, measured = embed_items(model, self.evaluation_set, items, self.batch_size, self.num_workers, compute)
        views = video.reshape(len(self.evaluation_set.samples), -1, *video.shape[1:])
        kept = [sample.video_id not in self.evaluation_set.dropped for sample in self.evaluation_set.samples]
        return text, views[kept], measured

    def predict(self, model: VideoTextModel, text: np.ndarray, video: np.ndarray, compute: Compute) -> Predictions:
        """Class probabilities from embeddings.

        Args:
            text: (C, E). video: (N, views, …).
        """
        if model.head.is_product:
            scale, classes = model.head.scale.item(), torch.from_numpy(text).double()
            probabilities = np.empty((len(video), len(text)))
            for row, views in zip(probabilities, torch.from_numpy(video), strict=True):  # all at once would take memory
                row[:] = (scale * (views.double() @ classes.T)).softmax(-1).mean(0)
        else:
            scores = score_pairs(model, text, video.reshape(-1, *video.shape[2:]), compute)  # (C, N·views)
            by_view = torch.from_numpy(scores.T).double().softmax(-1).unflatten(0, video.shape[:2])
            probabilities = by_view.mean(1).numpy()
        if np.isnan(probabilities).any():
            raise FloatingPointError("the class probabilities hold values that are not numbers (NaN)")
        return Predictions(probabilities, np.array([sample.label for sample in self.evaluation_set.kept]))

    def _prediction_table(self, predictions: Predictions) -> str:
        rows = [["video", "label", "prediction", "top5", "probability"]]  # names may hold spaces and commas
        for sample, ranked, probabilities in zip(
            self.evaluation_set.kept, predictions.ranked, predictions.probabilities, strict=True
        ):
            names = [self.classes[c] for c in ranked[:TOP]]
            rows.append(
                [sample.video_id, self.classes[sample.label], names[0], "; ".join(names), f"{probabilities.max():.6f}"]
            )
        return csv_text(rows)

    def _class_table(self, predictions: Predictions) -> str:
        right = predictions.ranked[:, 0] == predictions.labels
        rows = [["class", "videos", "top1"]]
        for label, name in enumerate(self.classes):
            of_class = right[predictions.labels == label]
            accuracy = round(percent(of_class), DECIMALS) if len(of_class) else ""
            rows.append([name, len(of_class), accuracy])
        return csv_text(rows)

    def _save_features(self, text: np.ndarray, video: np.ndarray) -> None:
        """``text.npy`` (a row a class), ``video.npy`` (mean over views, unit length), ids, classes and labels."""
        mean = video.mean(1)
        arrays = {"text": text, "video": mean / np.linalg.norm(mean, axis=1, keepdims=True)}
        samples = self.evaluation_set.kept
        columns = {
            "text_ids": self.classes,
            "video_ids": [sample.video_id for sample in samples],
            "captions": self.prompts[:: len(self.prompts) // len(self.classes)],
            "labels": [self.classes[sample.label] for sample in samples],
        }
        save_features(self.save_features, arrays, columns)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """A confusion matrix as a PNG: rows are the true classes, shades the share of a row."""
    from matplotlib.figure import Figure  # slow to import, and needed here only

    size = max(4.0, 0.22 * len(classes) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    axes.set_xticks(ticks, classes, rotation=90, fontsize=7)
    axes.set_yticks(ticks, classes, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, label="share of the class's videos", shrink=0.7)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
