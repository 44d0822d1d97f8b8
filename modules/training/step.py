"""One training step: the loss of the global batch, its gradient, and what it changes."""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from dataloaders.batches import Batch
from modules.model.measures import Measures, add_up, number_type, totals
from modules.model.video_text import VideoTextModel
from modules.runtime.compute import Compute
from modules.tasks.base import Task
from modules.training.accumulation import Rows, backward_in_parts, check_can_accumulate
from modules.training.optimization import build_optimizer, build_scheduler


class Outcome(Enum):
    """What became of a step."""

    DONE = "done"
    OVERFLOW = "overflow"
    LOSS_NOT_FINITE = "loss not finite"
    GRADIENT_NOT_FINITE = "gradient not finite"


class Gradient(NamedTuple):
    """A gradient that stands in the parameters.

    Attributes:
        loss: of the global batch. norm: of the gradient before clipping, NaN where the loss is not finite.
        outcome: what becomes of the step.
        totals: what was measured in this rank's share, see `modules.model.measures.totals`; none where nobody asked or
            the loss is not finite.
        clipped: whether it was longer than allowed and is used.
    """

    loss: float
    norm: float
    outcome: Outcome
    totals: Mapping[str, Sequence[float]]
    clipped: bool = False


class Step:
    """Takes steps with AdamW and its schedule, in a precision, on one process of many."""

    def __init__(
        self,
        model: VideoTextModel,
        task: Task,
        compute: Compute,
        lr: float,
        weight_decay: float,
        max_grad_norm: float,
        total_steps: int,
        warmup_proportion: float,
        accumulate: int = 1,
    ):
        """Prepare the first step.

        Args:
            model: on the device, in the precision's dtype.
            task: what its loss is.
            compute: where.
            lr: peak learning rate, of parameters whose factor is 1.
            weight_decay: AdamW's.
            max_grad_norm: a longer gradient is scaled down to this norm; 0 for no clipping.
            total_steps: of the whole training. warmup_proportion: share of them over which the rate rises.
            accumulate: parts that this process's share of a batch is encoded in, one after the other in memory; see
                `modules.training.accumulation`.

        Raises:
            UserError: if the model cannot be trained in parts.
        """
        if accumulate > 1:
            check_can_accumulate(model)
        self.model = model
        self.task = task
        self.compute = compute
        self.lr = lr
        self.max_grad_norm = max_grad_norm
        self.accumulate = accumulate
        self.parameters = [p for _, p in model.trainable_parameters()]
        self.buffers = dict(model.trained_buffers())
        self.optimizer = build_optimizer(model.how_parameters_train(), lr, weight_decay)
        self.scheduler = build_scheduler(self.optimizer, total_steps, warmup_proportion)
        self.scaler = compute.precision.scaler()
        self._kept_buffers = _copies(self.buffers)  # after the last finished step; a forward pass changes them

    @property
    def rate(self) -> float:
        """The learning rate of the step to come, for parameters whose factor is 1."""
        return self.lr * self.scheduler.lr_lambdas[0](self.scheduler.last_epoch)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the last finished step: a signal may come in the middle of one."""
        return {
            "model": self.model.trained_state() | {name: kept.cpu() for name, kept in self._kept_buffers.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave; other entries do not matter.

        Raises:
            UserError: if its parameters were trained in other groups, by an earlier version of this code.
        """
        self.model.load_trained_state(state["model"])
        self._kept_buffers = _copies(self.buffers)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            raise UserError(
                "the checkpoint is of an earlier version of this code, which gave weight decay to other parameters: it "
                "can be evaluated, and another training begin from it (--init_model), but this one not go on"
            ) from error
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])

    def differentiate(
        self,
        batch: Batch,
        keys: Tensor,
        step_key: Tensor,
        measured: bool = True,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Gradient:
        """Leave the gradient of the global batch's loss in the parameters, clipped.

        The device is waited for once, when it has been given all of the work.

        Args:
            batch: this rank's share, on the device.
            keys: (b,) int64, what dropout is drawn from, a key a sample.
            step_key: (1,) int64, the same on every rank.
            measured: whether to return what was measured.
            meanwhile: what to do while the device is at work.
        """
        keys = keys, step_key
        with self.compute.precision.products():
            loss, measures = self._backward(batch, keys, self.compute.precision.autocast, self.scaler.scale)
        self.compute.processes.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip_gradients()
        meanwhile()
        loss, norm, totals = _read(loss, norm, measures if measured else {})
        if not math.isfinite(loss):
            return Gradient(loss, math.nan, Outcome.LOSS_NOT_FINITE, {})
        if math.isfinite(norm):
            return Gradient(loss, norm, Outcome.DONE, totals, clipped=0 < self.max_grad_norm < norm)
        overflow = self.scaler.is_enabled() and self._is_finite_in_fp32(batch, keys)
        return Gradient(loss, norm, Outcome.OVERFLOW if overflow else Outcome.GRADIENT_NOT_FINITE, totals)

    def update(self, outcome: Outcome) -> None:
        """Change the parameters by the gradient they hold, unless it is not to be used; the schedule goes on.

        The buffers, which the forward pass has changed, are kept as it left them, or set back with the step left out.
        """
        if outcome is Outcome.DONE:
            self.compute.processes.average(self.buffers.values())
            self._kept_buffers = _copies(self.buffers)
        else:
            for name, buffer in self.buffers.items():
                buffer.copy_(self._kept_buffers[name])
        if outcome in (Outcome.DONE, Outcome.OVERFLOW):
            self.scaler.step(self.optimizer)  # which leaves out an overflow by itself
            self.scaler.update()
        else:
            self.scaler.update(self.scaler.get_scale())  # the scale had no part in it
        with warnings.catch_warnings():
            # a run may begin with steps that are left out
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
            self.scheduler.step()

    def _backward(
        self,
        batch: Batch,
        keys: tuple[Tensor, Tensor],
        precision: Callable[[], contextlib.AbstractContextManager],
        scale: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Measures]:
        """Leave the gradient of the loss, scaled, in the parameters, as far as this rank's share has a part in it.

        Args:
            precision: makes what the encoders run within.

        Returns:
            The loss of the global batch, and measures of the rank's share of it.
        """
        if self.accumulate == 1:
            with precision():
                video = self.model.encode_video(batch.frames, batch.num_frames, keys[0])
                text = self.task.encode_texts(self.model, batch, *keys)
            loss = self._loss(text, video["embedding"], batch, keys[0])
            self.optimizer.zero_grad()
            scale(loss).backward()
            return loss, video.get("measures", {})

        measures: Measures = {}

        def encode_videos(rows: slice) -> Tensor:
            nonlocal measures
            with precision():
                video = self.model.encode_video(batch.frames[rows], batch.num_frames[rows], keys[0][rows])
            if not torch.is_grad_enabled():  # each part comes a second time, for its gradient
                measures = add_up(measures, video.get("measures", {}))
            return video["embedding"]

        def encode_texts(rows: slice) -> Tensor:
            with precision():
                return self.task.encode_texts(self.model, batch, *keys, rows)

        self.optimizer.zero_grad()
        loss = backward_in_parts(
            [Rows(self.task.num_texts(batch), encode_texts), Rows(len(batch.frames), encode_videos)],
            self.accumulate,
            lambda text, video: self._loss(text, video, batch, keys[0]),
            scale,
        )
        return loss, measures

    def _loss(self, text: Tensor, video: Tensor, batch: Batch, keys: Tensor) -> Tensor:
        """The loss of the global batch."""
        return self.task.loss(self.model, text, video, batch, keys, self.compute.processes)

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed, and return the norm they had; 0 allows any."""
        if self.max_grad_norm == 0:
            return self._gradient_norm()
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)

    def _gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters])

    def _is_finite_in_fp32(self, batch: Batch, keys: tuple[Tensor, Tensor]) -> bool:
        """Whether the gradient of a batch is finite where fp16 and the loss scale have no part in it.

        Leaves that gradient in the parameters; the scaler remembers that the step is to be left out.
        """
        self._backward(batch, keys, contextlib.nullcontext, lambda loss: loss)
        self.compute.processes.average_gradients(self.parameters)
        return bool(torch.isfinite(self._gradient_norm()))


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, which nothing changes."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _read(loss: Tensor, norm: Tensor, measures: Measures) -> tuple[float, float, dict[str, list[float]]]:
    """What a device has found, in one copy; waits for it.

    Returns:
        Loss, norm, and the totals of the measures.
    """
    both = torch.stack([loss.detach(), norm])
    found = torch.cat([both.to(number_type(both.device)), *measures.values()]).cpu().tolist()
    return found[0], found[1], totals(measures, found[2:])
