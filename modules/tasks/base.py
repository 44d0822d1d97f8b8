"""What a task is: what the trainer and the main programs ask of one."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from dataloaders.batches import Batch
from dataloaders.items import EvaluationDataset, TrainingDataset
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.runtime.processes import Processes
from modules.runtime.run_folder import RunFolder

ALL = slice(None)


class Task(Protocol):
    """What a model is trained and judged for.

    Attributes:
        training_set: what to train on; None to evaluate only.
        evaluation_set: what metrics are computed on.
        selection_metric: the metric by which the best checkpoint is chosen, larger is better.
        evaluated_on: that set in words.
        legend: a line that explains the metrics.
        files: small text files that belong to the run from its start, by name.
        missing: (list, video id) of each video that is left out because it has no file.
        identity: what results depend on and the settings do not show, by name.
        captions: the texts of each list, by what they are called in a sentence.
        counts: ``texts`` and ``videos``, how many of each the metrics are of, and what else is to be said of these.
    """

    training_set: TrainingDataset | None
    evaluation_set: EvaluationDataset
    selection_metric: str
    legend: str
    files: Mapping[str, str]
    missing: Sequence[tuple[str, str]]
    identity: Mapping[str, Any]

    @property
    def evaluated_on(self) -> str: ...

    @property
    def captions(self) -> Mapping[str, Sequence[str]]: ...

    @property
    def counts(self) -> dict[str, Any]: ...

    def check(self, model: VideoTextModel) -> None:
        """Refuse a model that cannot do what the task was asked for, before anything is computed.

        Raises:
            UserError: saying what it cannot.
        """

    def num_texts(self, batch: Batch) -> int:
        """How many texts the videos of a batch are compared with on this rank."""

    def encode_texts(
        self, model: VideoTextModel, batch: Batch, keys: Tensor, step_key: Tensor, rows: slice = ALL
    ) -> Tensor:
        """The embeddings of these texts, (n, …), in the precision of the run.

        Args:
            batch: this rank's share, on the model's device.
            keys: (b,) int64, what dropout is drawn from, a key a sample.
            step_key: (1,) int64, the same on every rank, for what is encoded beside the samples.
            rows: a run of them, of `num_texts`.
        """

    def loss(
        self, model: VideoTextModel, text: Tensor, video: Tensor, batch: Batch, keys: Tensor, processes: Processes
    ) -> Tensor:
        """The loss of the global batch, the same on every rank; see `modules.runtime.processes` about its gradient."""

    def evaluate(self, model: VideoTextModel, compute: Compute) -> dict[str, float]:
        """Metrics on the evaluation set, with the means of what was measured, the same on every rank."""

    def report(self, model: VideoTextModel, compute: Compute, folder: RunFolder) -> dict[str, float]:
        """Evaluate the chosen checkpoint and write the files that the task leaves; metrics, the same on every rank."""
