"""The trainer: one loop for every task and method, on one process or many.

It knows about steps, processes, precision and checkpoints. What a batch is compared with and how a model is judged is
the task's (`Task`); what trains is the model's own business.
"""

import logging
import math
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dataloaders.dataset import Batch, GlobalBatches, TrainingDataset, read_batches, training_loader
from modules.errors import UserError
from modules.optimization import build_optimizer, build_scheduler
from modules.precision import PRECISIONS, Precision
from modules.processes import Processes
from modules.randomness import derive_seed
from modules.run_folder import BEST, LAST, RESULTS, RunFolder
from modules.settings import setting
from modules.video_text_model import VideoTextModel

logger = logging.getLogger("stop")


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are those of the paper's MSR-VTT runs."""

    epochs: int = setting(5, "passes over the training set")
    batch_size: int = setting(128, "samples a step, over all processes together")
    lr: float = setting(1e-3, "peak learning rate")
    weight_decay: float = setting(0.2, "AdamW's decay; none on biases and normalisations")
    warmup_proportion: float = setting(0.1, "share of the steps over which the rate rises to its peak")
    max_grad_norm: float = setting(1.0, "the gradient is scaled down to this norm")
    precision: str = setting("amp", "amp is bf16 where the device has it; fp64 is for checks", PRECISIONS)
    seed: int = setting(42, "of every random draw")
    on_bad_video: str = setting(
        "skip", "a video that cannot be decoded in training: read another instead, or stop", ("skip", "error")
    )
    num_thread_reader: int = setting(2, "decoding workers a process", affects_results=False)
    n_display: int = setting(50, "steps between two lines of the log", affects_results=False)
    save_steps: int = setting(500, "steps between two checkpoints within an epoch", affects_results=False)
    resume: str = setting(
        "auto",
        "continue what is in --output_dir if anything is, or start anew",
        ("auto", "never"),
        affects_results=False,
    )


class Task(Protocol):
    """What the trainer asks of a task.

    Attributes:
        training_set: what to train on.
        selection_metric: the metric by which the best checkpoint is chosen, larger is better.
    """

    training_set: TrainingDataset
    selection_metric: str

    def encode(self, model: VideoTextModel, batch: Batch, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Text and video embeddings of a batch; runs in the precision of the run.

        Args:
            batch: this rank's share, on the model's device.
            keys: (b,) int64, what dropout is drawn from.
        """

    def loss(self, model: VideoTextModel, text: Tensor, video: Tensor, batch: Batch, processes: Processes) -> Tensor:
        """The loss of the global batch, the same on every rank; see `modules.processes` about its gradient."""

    def evaluate(self, model: VideoTextModel, processes: Processes, precision: Precision) -> dict[str, float]:
        """Metrics on the evaluation set, the same on every rank."""


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        epochs_evaluated: epochs whose evaluation is done.
        seconds: spent on training and evaluation so far.
        best, last: metrics of the best and of the last evaluation, with their ``epoch``; empty before the first.
    """

    step: int = 0
    epochs_evaluated: int = 0
    seconds: float = 0.0
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Trains a model on a task, resuming by itself."""

    def __init__(
        self,
        model: VideoTextModel,
        task: Task,
        settings: TrainSettings,
        processes: Processes,
        precision: Precision,
        folder: RunFolder,
        identity: Mapping[str, Any],
    ):
        """Prepare a run.

        Args:
            model: on the device, in the precision's dtype.
            task: what to train for.
            settings: how.
            processes, precision, folder: where.
            identity: everything that the result depends on, by name; a checkpoint with another one is not continued.
                Holds at least ``method``.

        Raises:
            UserError: if the method has nothing to train or the batch size does not fit.
        """
        if model.num_trainable() == 0:
            raise UserError(f"--method {identity['method']} has nothing to train: give --do_eval alone")
        self.model = model
        self.task = task
        self.settings = settings
        self.processes = processes
        self.precision = precision
        self.folder = folder
        self.identity = dict(identity)
        self.batches = GlobalBatches(
            len(task.training_set), settings.batch_size, settings.seed, processes.rank, processes.world_size
        )
        self.parameters = [p for _, p in model.trainable_parameters()]
        factors = [model.rate_factor(name) for name, _ in model.trainable_parameters()]
        self.optimizer = build_optimizer(zip(self.parameters, factors, strict=True), settings.lr, settings.weight_decay)
        total_steps = settings.epochs * self.batches.batches_per_epoch
        self.scheduler = build_scheduler(self.optimizer, total_steps, settings.warmup_proportion)
        self.scaler = precision.scaler()
        self.position = Position()
        self._bad_videos: list[tuple[int, str, str]] = []

    def resume(self) -> None:
        """Continue from the folder's last checkpoint, if there is one and it is of this very run; call before `train`.

        Raises:
            UserError: listing the settings that differ from the checkpoint's.
        """
        if self.settings.resume == "never":
            self.folder.clear()
            return
        checkpoint = self.processes.broadcast_object(self.folder.load_checkpoint(LAST))
        if checkpoint is None:
            found = [name for name in (BEST, RESULTS) if self.folder.has(name)]
            if found := self.processes.broadcast_object(found):
                raise UserError(
                    f"{self.folder.path} holds {found[0]} but no {LAST} to continue from: give another --output_dir, "
                    "or --resume never to start anew, which removes it"
                )
            self.folder.clear()
            return
        if differences := list_differences(checkpoint["identity"], self.identity):
            raise UserError(
                f"{self.folder.path / LAST} was made with other settings; give the same ones, another --output_dir, or "
                "--resume never to start anew:\n  " + "\n  ".join(differences)
            )
        self.model.load_trainable_state(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scheduler.load_state_dict(checkpoint["scheduler"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.position = Position(**checkpoint["position"])
        self.folder.forget_after(self.position.step, self.position.epochs_evaluated)
        logger.info("continuing %s at step %d", self.folder.path, self.position.step)

    def train(self) -> Position:
        """Train to the end of the last epoch, evaluating after each, and return where that led."""
        on_gpu = self.processes.device.type == "cuda"
        loader = training_loader(self.task.training_set, self.batches, self.settings.num_thread_reader, pin=on_gpu)
        with logging_redirect_tqdm([logger]):
            for epoch in range(self.position.epochs_evaluated, self.settings.epochs):
                self._train_epoch(loader, epoch)
                self._evaluate_epoch(epoch + 1)
        return self.position

    def _train_epoch(self, loader, epoch: int) -> None:
        """The steps of an epoch that are not done yet."""
        per_epoch = self.batches.batches_per_epoch
        first = self.position.step - epoch * per_epoch
        if first == per_epoch:
            return
        self.batches.start_at(epoch, first)
        self.model.train()
        with tqdm(
            total=per_epoch,
            initial=first,
            desc=f"epoch {epoch + 1}/{self.settings.epochs}",
            unit="step",
            disable=not self.processes.is_main,
        ) as bar:
            for batch, seconds in _timed(read_batches(loader)):
                rate = self.scheduler.get_last_lr()[0]
                loss, norm = self._step(batch)
                self._advance(seconds())
                bar.update()
                bar.set_postfix(
                    loss=f"{loss:.4f}", samples_s=f"{self.settings.batch_size / seconds():.1f}", refresh=False
                )
                if self.position.step % self.settings.n_display == 0:
                    self._log_step(epoch + 1, loss, norm, rate, seconds())
                if self.position.step % self.settings.save_steps == 0:
                    self._save(LAST)
        self._save(LAST)

    def _step(self, batch: Batch) -> tuple[float, float]:
        """One optimiser step: the loss of the global batch and the norm of its gradient before clipping."""
        for bad in batch.bad_videos:
            logger.warning("bad video, another was read instead: %s", bad)
            self._bad_videos.append((self.position.step + 1, str(bad.path), bad.reason))
        batch = batch.to(self.processes.device)
        with self.precision.autocast():
            text, video = self.task.encode(self.model, batch, self._dropout_keys(batch))
        loss = self.task.loss(self.model, text, video, batch, self.processes)
        if not torch.isfinite(loss):
            raise self._not_finite("loss", loss, batch)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.processes.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        if not self.scaler.is_enabled() and not torch.isfinite(norm):  # the scaler skips such a step by itself
            raise self._not_finite("norm of the gradient", norm, batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss.item(), norm.item()

    def _not_finite(self, what: str, value: Tensor, batch: Batch) -> FloatingPointError:
        rate = self.scheduler.get_last_lr()[0]
        return FloatingPointError(
            f"step {self.position.step + 1}: the {what} is {value.item()}, at rate {rate:.3g} "
            f"with videos {', '.join(batch.video_ids)}"
        )

    def _dropout_keys(self, batch: Batch) -> Tensor:
        """One key a sample, a function of the seed, the step and the sample: (b,) int64."""
        step = self.position.step
        keys = [derive_seed(self.settings.seed, "dropout", step, index) for index in batch.indices.tolist()]
        return torch.tensor(keys, device=self.processes.device)

    def _advance(self, seconds: float) -> None:
        self.position = replace(self.position, step=self.position.step + 1, seconds=self.position.seconds + seconds)

    def _log_step(self, epoch: int, loss: float, norm: float, rate: float, seconds: float) -> None:
        step = self.position.step
        # in fp16 a step may overflow and be skipped: its norm is no number, and JSON has only numbers
        values = {"epoch": epoch, "loss": loss, "grad_norm": norm if math.isfinite(norm) else None, "lr": rate}
        self.folder.log_metrics("train", step, values)
        self.folder.log_speed(step, self.settings.batch_size / seconds)
        logger.info("epoch %d step %d loss %.4f gradient %.3f rate %.3g", epoch, step, loss, norm, rate)

    def _evaluate_epoch(self, epoch: int) -> None:
        """Evaluate, and keep the checkpoint if it is the best so far."""
        start = time.perf_counter()
        metrics = self.task.evaluate(self.model, self.processes, self.precision)
        self.folder.log_metrics("eval", self.position.step, {"epoch": epoch, **metrics})
        name = self.task.selection_metric
        best = self.position.best
        is_best = not best or metrics[name] >= best[name]  # of equals the later, which has seen more
        logger.info("epoch %d: %s", epoch, " ".join(f"{k} {v:.2f}" for k, v in metrics.items()))
        last = {"epoch": epoch, **metrics}
        self.position = replace(
            self.position,
            epochs_evaluated=epoch,
            seconds=self.position.seconds + time.perf_counter() - start,
            best=last if is_best else best,
            last=last,
        )
        if is_best:
            logger.info("%s is the best checkpoint so far, by %s on the evaluation set", BEST, name)
            self._save(BEST)
        self._save(LAST)

    def _save(self, name: str) -> None:
        self.folder.add_bad_videos(self.processes.gather_list(self._bad_videos))
        self._bad_videos = []
        content = {
            "method": self.identity["method"],
            "model": self.model.trainable_state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "position": asdict(self.position),
            "identity": self.identity,
        }
        self.folder.save_checkpoint(name, content)


def list_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that say what changed between the settings of a checkpoint and those of this run."""
    return [
        f"{name}: was {before.get(name)}, is {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held, in MiB: on its GPU if it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # getrusage counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _timed(batches) -> Iterator[tuple[Batch, Any]]:
    """Batches, each with a function that tells the seconds since the one before was asked for."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, lambda start=start: time.perf_counter() - start
        start = time.perf_counter()
