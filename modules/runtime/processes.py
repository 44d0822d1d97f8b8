"""One process or many: the only place that knows about process groups.

Every rank computes the loss of the whole global batch from gathered rows in which only its own carry a gradient, scaled
up by the number of ranks, and the gradients of the ranks are then averaged. That is the exact gradient of the global
loss: a parameter before the gathering gets the sum of what the ranks found, one behind it (a trained logit scale) the
mean of equal values. It is why `DistributedDataParallel`, which expects separate losses, is not used.

What the devices have computed goes from one to the other. What the processes have to say to each other goes through a
group of its own, over gloo, which no device has to be waited for, and from which a process that waits too long comes
back to say for whom.
"""

import contextlib
import ctypes
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from common.errors import UserError
from common.progress import duration
from modules.runtime.whereabouts import EVERY, Whereabouts

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# environment variable of the processes that modules/runtime/launch.py starts: its process id
LAUNCHER = "STOP_LAUNCHER"
RUN_KEYS = "run"  # prefix of what the processes and modules/runtime/launch.py tell each other in the store
PATIENCE = 1800.0  # seconds that one process waits for another where nobody knows better
NOTICE = 1.0  # seconds in which modules/runtime/launch.py has noticed that a process was killed


@dataclass(frozen=True)
class Processes:
    """This process and its companions.

    Attributes:
        rank: of this process, 0 to world_size − 1.
        world_size: how many there are.
        device: what this process computes on.
        store: keys and values that all share, also while one of them waits for another; None for one process.
        launched: whether modules/runtime/launch.py started them, which has the last word on their screen.
        control: the group of what they say to each other; None for the group of what the devices compute.
        whereabouts: what each of them is doing; None for one process.
        patience: seconds that one waits for another.
    """

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None
    launched: bool = False
    control: dist.ProcessGroup | None = None
    whereabouts: Whereabouts | None = None
    patience: float = PATIENCE

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, in the order of ranks; gradients flow to this rank's own, times the number of ranks.

        Args:
            rows: (b, …), the same b on every rank.

        Returns:
            (world_size·b, …).
        """
        if self.world_size == 1:
            return rows
        gathered = [torch.empty_like(rows) for _ in range(self.world_size)]
        with self._together():
            dist.all_gather(gathered, rows.detach().contiguous())
        gathered[self.rank] = rows + (self.world_size - 1) * (rows - rows.detach())  # the same values
        return torch.cat(gathered)

    def gather_objects(self, value: Any) -> list[Any]:
        """A picklable value of every rank, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self._together():
            dist.all_gather_object(values, value, group=self.control)
        return values

    def gather_list(self, items: Iterable[Any]) -> list[Any]:
        """Lists of all ranks joined in the order of ranks."""
        return [item for part in self.gather_objects(list(items)) for item in part]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average the gradients of all ranks, in place; a parameter without one counts as zero."""
        parameters = list(parameters)
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.average(p.grad for p in parameters)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over all ranks, in place; what counts (integers) is the same on all of them and stays."""
        tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
        if self.world_size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self._together():
            dist.all_reduce(flat)
        flat /= self.world_size
        for tensor, averaged in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(averaged.view_as(tensor))

    def add_up(self, *counts: int) -> list[int]:
        """Sums over all ranks."""
        if self.world_size == 1:
            return list(counts)
        summed = torch.tensor(counts)
        with self._together():
            dist.all_reduce(summed, group=self.control)
        return summed.tolist()

    def is_first_to_say(self, message: str) -> bool:
        """Whether no other rank has asked this with the same message; for errors that all of them meet."""
        if self.store is None:
            return True
        try:
            return self.store.add("said/" + hashlib.sha256(message.encode()).hexdigest(), 1) == 1
        except RuntimeError:  # whoever kept the store is gone
            return True

    def report_failure(self) -> None:
        """Let the other ranks know that this one cannot go on."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.add("failures", 1)

    def others_failed(self, error: BaseException | None = None) -> bool:
        """Whether another rank has reported a failure, or the launcher that one was killed.

        Args:
            error: that this rank has met. A connection that breaks may be the first sign that its other end was killed;
                the launcher is given the time to notice.
        """
        if self.store is None:
            return False
        deadline = time.monotonic() + (NOTICE if self.launched and isinstance(error, RuntimeError) else 0)
        try:
            while not (failed := self.store.add("failures", 0) > 0) and time.monotonic() < deadline:
                time.sleep(0.05)
        except RuntimeError:  # the launcher, which keeps the store, is gone
            return False
        return failed

    def what_failed(self) -> str:
        """Which other rank failed, for a message, as far as it is known."""
        with contextlib.suppress(RuntimeError):
            if self.store is not None and self.store.check(["killed"]):
                return self.store.get("killed").decode()
        return "another process failed"

    def leave_last_word(self, text: str) -> bool:
        """Have the launcher show a text when all ranks have ended; False if there is none that does."""
        if not self.launched:
            return False
        try:
            self.store.set(f"word/{self.store.add('words', 1)}", text)
        except RuntimeError:  # it is gone
            return False
        return True

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value of something picklable, on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        with self._together():
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def reading(self, find: Callable[[], tuple[str, float] | None]) -> contextlib.AbstractContextManager:
        """Within this the others may know which video this one is waiting for; see `Whereabouts.reading`."""
        return contextlib.nullcontext() if self.whereabouts is None else self.whereabouts.reading(find)

    @contextlib.contextmanager
    def _together(self) -> Iterator[None]:
        """Around what all ranks come to in the same order.

        Raises:
            UserError: naming the ranks that have not come, and the videos that they read, if that took too long.
        """
        if self.whereabouts is None:
            yield
            return
        self.whereabouts.come_together()
        begun = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if time.monotonic() - begun < 0.99 * self.patience:  # something else is wrong
                raise
            raise UserError(
                f"waited {duration(self.patience)} for {self.whereabouts.describe_late()}. Look at its machine and at "
                "the disk that it reads from; the same command continues. A larger --video_time_limit lets processes "
                "wait longer for each other."
            ) from error


def report_killed(store: dist.Store, message: str) -> None:
    """Let the ranks know that one was killed, which could not say so; for the launcher."""
    store.set("killed", message)
    store.add("failures", 1)


def last_words(store: dist.Store) -> list[str]:
    """What the ranks left to be shown at the end; for the launcher."""
    keys = [f"word/{number}" for number in range(1, store.add("words", 0) + 1)]
    return [store.get(key).decode() for key in keys if store.check([key])]  # one may have ended in between


def check_gpus(wanted: int) -> None:
    """Refuse more processes on this machine than it has GPUs, if it has any.

    Raises:
        UserError: saying how many there are.
    """
    if torch.cuda.is_available() and wanted > torch.cuda.device_count():
        raise UserError(
            f"{wanted} processes were asked for on this machine, which has {torch.cuda.device_count()} GPUs: give each "
            "process one (GPUS for the scripts, --processes or torchrun's --nproc_per_node)"
        )


def start_processes(patience: float = PATIENCE) -> Processes:
    """Join the group that ``modules.runtime.launch`` or ``torchrun`` set up, or be the only process.

    The device is this process's own CUDA GPU, else Apple's (untested), else the CPU. What devices compute goes through
    NCCL on GPUs and gloo on CPUs.

    Args:
        patience: seconds that a process waits for another.

    Raises:
        UserError: if there are more processes here than GPUs.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local_rank = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)))
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    elif torch.backends.mps.is_available() and world_size == 1:
        device = torch.device("mps")
    else:
        device = torch.device("cpu")
    if world_size == 1:
        return Processes(rank, world_size, device)
    _end_with_the_launcher()
    store, rank, world_size = next(rendezvous("env://"))
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=patience)
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    control = dist.new_group(backend="gloo", timeout=timeout)
    told = dist.PrefixStore(RUN_KEYS, store)
    whereabouts = Whereabouts(told, rank, world_size, min(EVERY, patience / 4))
    return Processes(rank, world_size, device, told, LAUNCHER in os.environ, control, whereabouts, patience)


def _end_with_the_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher dies, whose processes would else go on without it; Linux only."""
    if sys.platform == "linux" and {LAUNCHER, "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if LAUNCHER in os.environ and os.getppid() != int(os.environ[LAUNCHER]):  # it died before this
            os.kill(os.getpid(), signal.SIGTERM)


def stop_processes(processes: Processes) -> None:
    """Leave the groups, if there are any."""
    if processes.whereabouts is not None:
        processes.whereabouts.stop()
    if dist.is_initialized():
        dist.destroy_process_group()
