"""The trainer: one loop for every task and method, on one process or many.

It knows about steps, processes, precision and checkpoints. What a batch is compared with and how a model is judged is
the task's (`Task`); what trains is the model's own business.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from common.errors import UserError
from common.memory import peak_resident_mb
from common.progress import INTERVAL, duration
from common.seeds import derive_seed
from common.settings import above, at_least, between, setting
from dataloaders.bad_videos import SKIPPED
from dataloaders.batches import Ahead, Batch, GlobalBatches, check_parts, read_batches, training_loader
from modules.kernels.copies import send
from modules.model.measures import explain, means
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.runtime.identity import list_differences
from modules.runtime.interruption import Interrupted, Interruption
from modules.runtime.precision import PRECISIONS
from modules.runtime.run_folder import BEST, LAST, RESULTS, RunFolder
from modules.tasks.base import Task
from modules.tasks.metrics import rounded
from modules.tasks.thinned import find_thinned, say_thinned
from modules.training.step import Gradient, Outcome, Step

logger = logging.getLogger("stop")

MIN_JUDGED = 200  # samples, before which one bad video would be a large share


@dataclass(frozen=True)
class TrainSettings:
    """How to train; the defaults are those of the paper's MSR-VTT runs."""

    epochs: int = setting(5, "passes over the training set", within=at_least(1))
    batch_size: int = setting(128, "samples a step, over all processes together", within=at_least(1), metavar="SAMPLES")
    lr: float = setting(1e-3, "peak learning rate", within=above(0), metavar="RATE")
    weight_decay: float = setting(0.2, "AdamW's decay; none on biases and normalisations", within=at_least(0))
    warmup_proportion: float = setting(
        0.1, "share of the steps over which the rate rises to its peak", within=between(0, 1), metavar="SHARE"
    )
    max_grad_norm: float = setting(
        1.0, "a longer gradient is scaled down to this norm; 0 for no clipping", within=at_least(0), metavar="NORM"
    )
    precision: str = setting("amp", "amp is bf16 where the device has it; fp64 is for checks", PRECISIONS)
    seed: int = setting(42, "of every random draw", within=between(0, 2**63 - 1))
    checkpoint_activations: bool = setting(
        False,
        "keep less for the gradients and compute it again: less memory, for long videos, and slower",
        affects_results=False,
    )
    accumulate: int = setting(
        1,
        "parts that a process encodes its share of a batch in, one at a time in memory; the same gradient, by a second "
        "forward pass",
        affects_results=False,
        within=at_least(1),
        metavar="PARTS",
    )
    # what follows decides whether a run stops, not what it computes: a run that stopped may go on with another choice
    on_bad_video: str = setting(
        "skip",
        "a video that cannot be decoded in training: read another instead, or stop",
        ("skip", "error"),
        affects_results=False,
    )
    max_bad_fraction: float = setting(
        0.01,
        "stop when bad videos were drawn more often than this share of the samples, a video as often as it was "
        f"drawn; judged from {MIN_JUDGED} samples on",
        affects_results=False,
        within=between(0, 1),
        metavar="SHARE",
    )
    on_nonfinite: str = setting(
        "stop",
        "a loss or gradient that is not finite: stop, or leave out the step",
        ("stop", "skip"),
        affects_results=False,
    )
    num_thread_reader: int = setting(
        2,
        "decoding workers a process; 0 to decode in the process itself",
        affects_results=False,
        within=at_least(0),
        metavar="WORKERS",
    )
    n_display: int = setting(
        50, "steps between two lines of the log", affects_results=False, within=at_least(1), metavar="STEPS"
    )
    save_steps: int = setting(
        500,
        "steps between two checkpoints within an epoch",
        affects_results=False,
        within=at_least(1),
        metavar="STEPS",
    )
    resume: str = setting(
        "auto",
        "continue what is in --output_dir if anything is, or start anew",
        ("auto", "never"),
        affects_results=False,
    )


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        step: steps done, also those that changed nothing.
        epochs_evaluated: epochs whose evaluation is done.
        seconds: spent on training and evaluation so far.
        bad_videos: videos that could not be read at least once, in whose stead others were; each counts once.
        nonfinite_steps: left out because the loss or the gradient was not finite.
        overflow_steps: left out because the scaled gradient was too large for fp16, which lowers the scale.
        since_line, since_evaluation: since the last logged step and the last evaluation, the steps that were not left
            out, and how many of them had their gradient clipped.
        best, last: metrics of the best and of the last evaluation, with their ``epoch``; empty before the first.
    """

    step: int = 0
    epochs_evaluated: int = 0
    seconds: float = 0.0
    bad_videos: int = 0
    nonfinite_steps: int = 0
    overflow_steps: int = 0
    since_line: tuple[int, int] = (0, 0)
    since_evaluation: tuple[int, int] = (0, 0)
    best: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


class TimeLeft:
    """How long a run still takes, by what this part of it took so far."""

    def __init__(self):
        """Nothing is known before something is done."""
        self._steps: list[float] = []  # seconds of each
        self._evaluations: list[float] = []

    def add_step(self, seconds: float) -> None:
        """Remember what a step took."""
        self._steps.append(seconds)

    def add_evaluation(self, seconds: float) -> None:
        """Remember what an evaluation took."""
        self._evaluations.append(seconds)

    def say(self, steps: int, evaluations: int) -> str:
        """What is left, in words, after at least one step.

        Args:
            steps, evaluations: how many are to come.
        """
        # the first step starts the workers and may compile
        seconds = steps * fmean(self._steps[1:] or self._steps)
        if self._evaluations:
            return f"{duration(seconds + evaluations * fmean(self._evaluations))} left"
        return f"{duration(seconds)} left" + (" without evaluations" if evaluations else "")


class Trainer:
    """Trains a model on a task, resuming by itself."""

    def __init__(
        self,
        model: VideoTextModel,
        task: Task,
        settings: TrainSettings,
        compute: Compute,
        folder: RunFolder,
        identity: Mapping[str, Any],
        clip_source: Mapping[str, str | None],
        interruption: Interruption,
        former: Mapping[str, Any] | None = None,
    ):
        """Prepare a run.

        Args:
            model: on the device, in the precision's dtype.
            task: what to train for.
            settings: how.
            compute, folder: where.
            identity: everything that the result depends on, by name; a checkpoint with another one is not continued.
                Holds at least ``method``.
            clip_source: ``clip_name`` and ``pretrained_dir``, from which CLIP was loaded; it may move, so only messages
                and checkpoints have them.
            interruption: tells when to stop.
            former: what a checkpoint that lacks a setting was made with, by name.

        Raises:
            UserError: if the method has nothing to train, or batch size or parts do not fit.
        """
        if model.num_trainable() == 0:
            raise UserError(f"--method {identity['method']} has nothing to train: give --do_eval alone")
        self.model = model
        self.task = task
        self.settings = settings
        self.compute = compute
        self.processes, self.precision = compute.processes, compute.precision
        self.folder = folder
        self.identity = dict(identity)
        self.clip_source = dict(clip_source)
        self.batches = GlobalBatches(
            len(task.training_set),
            settings.batch_size,
            settings.seed,
            self.processes.rank,
            self.processes.world_size,
        )
        check_parts(settings.accumulate, settings.batch_size, self.processes.world_size)
        self.total_steps = settings.epochs * self.batches.batches_per_epoch
        self.step = Step(
            model,
            task,
            compute,
            settings.lr,
            settings.weight_decay,
            settings.max_grad_norm,
            self.total_steps,
            settings.warmup_proportion,
            settings.accumulate,
        )
        self.position = Position()
        self.interruption = interruption
        self.former = former
        self._time_left = TimeLeft()
        self._last_said = time.monotonic()
        self._legend_said = False

    def resume(self) -> None:
        """Continue from the folder's last checkpoint, if there is one and it is of this very run; call before `train`.

        Raises:
            UserError: listing the settings that differ from the checkpoint's.
        """
        if self.settings.resume == "never":
            self._start_anew()
            return
        checkpoint = self.processes.broadcast_object(self.folder.load_checkpoint(LAST))
        if checkpoint is None:
            found = [name for name in (BEST, RESULTS) if self.folder.has(name)]
            if found := self.processes.broadcast_object(found):
                raise UserError(
                    f"{self.folder.path} holds {found[0]} but no {LAST} to continue from: give another --output_dir, "
                    "or --resume never to start anew, which removes it"
                )
            self._start_anew()
            return
        if differences := list_differences(checkpoint, self._header(), former=self.former):
            raise UserError(
                f"{self.folder.path / LAST} was made with other settings; give the same ones, another --output_dir, or "
                "--resume never to start anew:\n  " + "\n  ".join(differences)
            )
        self.step.load_state(checkpoint)
        self.position = Position(**checkpoint["position"])
        self.folder.forget_after(self.position.step, self.position.epochs_evaluated)
        # what came after the checkpoint comes again, with the decisions that the clock had a part in
        skipped, dropped = self.processes.broadcast_object((self.folder.read_skipped(), self.folder.read_dropped()))
        self.task.training_set.replay([video for step, video in skipped if step > self.position.step])
        self.task.evaluation_set.drop(dropped)
        logger.info("continuing %s at step %d of %d", self.folder.path, self.position.step, self.total_steps)

    def _start_anew(self) -> None:
        """Begin with an empty folder, and a checkpoint: whose run it is is known from the first step on."""
        self.folder.clear()
        self._save(LAST)

    def plan(self) -> str:
        """What `train` does from the first step of the run to its last, in words."""
        settings, samples = self.settings, self.task.training_set.samples
        videos = len({sample.video_id for sample in samples})
        device, processes = self.processes.device.type, self.processes.world_size
        return (
            f"training on {len(samples):,} samples ({videos:,} videos), {self.batches.batches_per_epoch:,} steps an "
            f"epoch x {settings.epochs} epochs = {self.total_steps:,} steps of {settings.batch_size} on {processes} "
            f"process(es) ({device}, {self.precision.name}); evaluating on {self.task.evaluated_on} after each epoch"
        )

    def train(self) -> Position:
        """Train to the end of the last epoch, evaluating after each, and return where that led."""
        self._last_said = time.monotonic()
        on_gpu = self.processes.device.type == "cuda"
        loader = training_loader(self.task.training_set, self.batches, self.settings.num_thread_reader, pin=on_gpu)
        reading = self.processes.reading(self.task.training_set.being_read)
        with logging_redirect_tqdm([logger]), self.interruption.finish_steps(self._save_and_close), reading:
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
            disable=None if self.processes.is_main else True,  # None: no bar where stderr is no terminal
        ) as bar:
            batches = Ahead(read_batches(loader), self.processes.device)
            for batch, seconds in _timed(batches):
                bad_videos = self._agree_to_go_on(batch)
                rate = self.step.rate
                logged = (self.position.step + 1) % self.settings.n_display == 0
                gradient = self._compute(batch, logged, batches.fetch)
                measured = means(self.processes.gather_objects(gradient.totals)) if logged else {}
                with self.interruption.changing_state():
                    self.step.update(gradient.outcome)
                    self._advance(seconds(), gradient, bad_videos)
                    self._time_left.add_step(seconds())
                    if logged:
                        measured |= share_clipped(self.position.since_line)
                        self._log_step(epoch + 1, gradient, rate, measured, seconds())
                        self._say_step(epoch + 1, gradient, rate, measured)
                    elif time.monotonic() - self._last_said >= INTERVAL:
                        self._say_step(epoch + 1, gradient, rate, {})  # the clock decides about the log alone
                    if self.position.step % self.settings.save_steps == 0:
                        self._save(LAST)
                bar.update()
                bar.set_postfix(
                    loss=f"{gradient.loss:.4f}", samples_s=f"{self.settings.batch_size / seconds():.1f}", refresh=False
                )
        with self.interruption.changing_state():
            self._save(LAST)

    def _agree_to_go_on(self, batch: Batch) -> int:
        """Before a step: record its bad videos, and see whether all ranks are to take it.

        Returns:
            How many videos were bad up to it, each counted once.

        Raises:
            Interrupted: on all ranks, if one was told to stop.
            UserError: if bad videos were drawn too often.
        """
        stops, num_skipped = self.processes.add_up(int(self.interruption.requested), len(batch.skipped))
        if stops:
            raise Interrupted
        if num_skipped == 0:
            return self.position.bad_videos
        step = self.position.step + 1
        skipped = self.processes.gather_list(batch.skipped)
        if self.processes.is_main:
            for video in skipped:
                logger.warning("step %d: bad video, another was read instead: %s", step, video)
        # on the disk before anything depends on it: a resumed run has to decide the same
        self.folder.add_skipped(step, skipped)
        # the record is the main process's, and after a restart holds steps that are still to come again
        reads = [video for at, video in self.folder.read_skipped() if at <= step]
        counts = (len(reads), self.task.training_set.count_videos(reads))
        num_reads, bad_videos = self.processes.broadcast_object(counts)
        samples = step * self.settings.batch_size
        if samples >= MIN_JUDGED and num_reads > self.settings.max_bad_fraction * samples:
            raise UserError(
                f"bad videos ({bad_videos} of them) were drawn {num_reads} times for {samples} samples, more than "
                f"--max_bad_fraction {self.settings.max_bad_fraction:g}; {self.folder.path / SKIPPED} lists them with "
                "their reasons. preprocess/check_videos.py finds all of them beforehand. Replace them, or allow a "
                "larger share."
            )
        return bad_videos

    def _compute(self, batch: Batch, measured: bool, meanwhile: Callable[[], None]) -> Gradient:
        """The gradient of the global batch, in the parameters; see `Step.differentiate`.

        Raises:
            FloatingPointError: if it or the loss is not finite and that is not to be left out.
        """
        gradient = self.step.differentiate(batch, *self._dropout_keys(batch), measured, meanwhile)
        if gradient.outcome is Outcome.LOSS_NOT_FINITE:
            self._report_not_finite("loss", gradient.loss, batch)
        elif gradient.outcome is Outcome.GRADIENT_NOT_FINITE:
            self._report_not_finite("norm of the gradient", gradient.norm, batch)
        elif gradient.outcome is Outcome.OVERFLOW:
            scale = self.step.scaler.get_scale()
            logger.info("step %d: fp16 overflow at loss scale %g, which is lowered", self.position.step + 1, scale)
        return gradient

    def _report_not_finite(self, what: str, value: float, batch: Batch) -> None:
        """Raise, or warn if the step is to be left out; the same on every rank."""
        video_ids = self.processes.gather_list(batch.video_ids)
        message = (
            f"step {self.position.step + 1}: the {what} is {value}, at rate {self.step.rate:.3g} "
            f"with videos {', '.join(video_ids)}"
        )
        if self.settings.on_nonfinite == "stop":
            raise FloatingPointError(f"{message}. A lower --lr may help; --on_nonfinite skip leaves such steps out.")
        if self.processes.is_main:
            logger.warning("%s; the step is left out", message)

    def _dropout_keys(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A key a sample, a function of the seed, the step and the sample, and one of the step: (b,), (1,) int64."""
        step = self.position.step
        keys = [derive_seed(self.settings.seed, "dropout", step, index) for index in batch.indices.tolist()]
        of_step = [derive_seed(self.settings.seed, "dropout of step", step)]
        return send(torch.tensor(keys), self.processes.device), send(torch.tensor(of_step), self.processes.device)

    def _advance(self, seconds: float, gradient: Gradient, bad_videos: int) -> None:
        position, outcome = self.position, gradient.outcome
        done = int(outcome is Outcome.DONE), int(gradient.clipped)
        not_finite = outcome in (Outcome.LOSS_NOT_FINITE, Outcome.GRADIENT_NOT_FINITE)
        self.position = replace(
            position,
            step=position.step + 1,
            seconds=position.seconds + seconds,
            bad_videos=bad_videos,
            nonfinite_steps=position.nonfinite_steps + not_finite,
            overflow_steps=position.overflow_steps + (outcome is Outcome.OVERFLOW),
            since_line=_sums(position.since_line, done),
            since_evaluation=_sums(position.since_evaluation, done),
        )

    def _log_step(
        self, epoch: int, gradient: Gradient, rate: float, measured: Mapping[str, float], seconds: float
    ) -> None:
        step = self.position.step
        values = {"loss": gradient.loss, "grad_norm": gradient.norm, "lr": rate, **measured}
        # of a step that was left out; JSON has only numbers
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self.folder.log_metrics("train", step, {"epoch": epoch, **finite})
        self.folder.log_speed(step, self.settings.batch_size / seconds)
        self.position = replace(self.position, since_line=(0, 0))

    def _say_step(self, epoch: int, gradient: Gradient, rate: float, measured: Mapping[str, float]) -> None:
        """A line of the log, with what the clock says, which no other file may depend on."""
        step, epochs = self.position.step, self.settings.epochs
        logger.info(
            "epoch %d/%d step %d/%d loss %.4f gradient %.3f rate %.3g, %s%s",
            *(epoch, epochs, step, self.total_steps, gradient.loss, gradient.norm, rate),
            " ".join(f"{name} {value:.2f}" for name, value in measured.items()) + ", " if measured else "",
            self._time_left.say(self.total_steps - step, epochs - self.position.epochs_evaluated),
        )
        self._last_said = time.monotonic()

    def _evaluate_epoch(self, epoch: int) -> None:
        """Evaluate, and keep the checkpoint if it is the best so far."""
        start = time.perf_counter()
        logger.info("epoch %d/%d: evaluating", epoch, self.settings.epochs)
        metrics = self.task.evaluate(self.model, self.compute) | share_clipped(self.position.since_evaluation)
        self._time_left.add_evaluation(time.perf_counter() - start)
        with self.interruption.changing_state():
            if dropped := self.task.evaluation_set.dropped:
                self.folder.write_dropped(dropped)
            self.folder.log_metrics("eval", self.position.step, {"epoch": epoch, **rounded(metrics)})
            name = self.task.selection_metric
            best = self.position.best
            is_best = not best or metrics[name] >= best[name]  # of equals the later, which has seen more
            if not self._legend_said:
                logger.info("%s", explain(self.task.legend, metrics))
                self._legend_said = True
            shown = " ".join(f"{k} {v:.2f}" for k, v in metrics.items())
            mark = say_thinned(find_thinned(self.task))
            logger.info("epoch %d/%d: %s%s", epoch, self.settings.epochs, shown, f" ({mark})" if mark else "")
            last = {"epoch": epoch, **metrics}
            self.position = replace(
                self.position,
                epochs_evaluated=epoch,
                seconds=self.position.seconds + time.perf_counter() - start,
                since_evaluation=(0, 0),
                best=last if is_best else best,
                last=last,
            )
            if is_best:
                logger.info("%s is the best checkpoint so far, by %s on the evaluation set", BEST, name)
                self._save(BEST)
            self._save(LAST)

    def _save_and_close(self) -> None:
        """Save where the run has come to, as the last thing that it does."""
        self._save(LAST)
        self.folder.close()
        logger.info("saved step %d to %s; the same command continues", self.position.step, self.folder.path / LAST)

    def _header(self) -> dict[str, Any]:
        """What a checkpoint says of its run."""
        return {"method": self.identity["method"], **self.clip_source, "identity": self.identity}

    def _save(self, name: str) -> None:
        content = {
            **self._header(),
            **self.step.state(),
            "position": asdict(self.position),
        }
        with self.interruption.saving():
            self.folder.save_checkpoint(name, content)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held, in MiB: on its GPU if it has one, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_resident_mb()


def share_clipped(counts: tuple[int, int]) -> dict[str, float]:
    """``clipped_steps``, the share of steps whose gradient was clipped; empty where all were left out.

    Args:
        counts: of a `Position`, the steps and how many of them were clipped.
    """
    steps, clipped = counts
    return {"clipped_steps": clipped / steps} if steps else {}


def _sums(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]


def _timed(batches) -> Iterator[tuple[Batch, Any]]:
    """Batches, each with a function that tells the seconds since the one before was asked for."""
    start = time.perf_counter()
    for batch in batches:
        yield batch, lambda start=start: time.perf_counter() - start
        start = time.perf_counter()
