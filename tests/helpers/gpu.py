"""A GPU that is none: tensors that say they are on one and compute on the CPU, and a record of what waits for it.

A program gives a GPU work and goes on. It waits where it asks for a value, where it copies to the GPU from memory that
is not page-locked or without saying that it need not wait, and where values decide how large a result is.
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.weak import WeakIdKeyDictionary

from helpers.paths import ROOT

GPU = torch.device("cuda", 0)
# to torch's own code the tensors are on this one, for which it needs no machine; to Python's they are on the GPU
INSIDE = torch.device("meta")
SIZED_BY_VALUES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "equal"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
PACKING = {"_pack_padded_sequence", "_pack_padded_sequence_backward", "_pad_packed_sequence"}  # lengths are the CPU's


class Event(NamedTuple):
    """Something that concerns both the GPU and the CPU.

    Attributes:
        kind: ``read``, of values of the GPU, and ``wait``, for any other reason; ``copy``, to the GPU in passing.
        place: the innermost of the project's own lines, as ``file:line``, and the operation.
        stream: the one that a copy was given to.
    """

    kind: str
    place: str
    stream: "Stream"


@dataclass
class Record:
    """What happened, in order."""

    events: list[Event] = field(default_factory=list)

    def places(self, kind: str) -> list[str]:
        """Where events of a kind happened."""
        return [event.place for event in self.events if event.kind == kind]


class Stream:
    """Stands for a stream of the GPU."""

    def __init__(self, device: torch.device | None = None):
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


class OnGPU(Tensor):
    """A tensor of the GPU.

    Attributes:
        values: a tensor of the CPU.
        used_by: streams that its memory is kept for.
    """

    device = GPU
    values: Tensor
    used_by: list[Stream]

    @staticmethod
    def __new__(cls, values: Tensor) -> "OnGPU":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=INSIDE,
        )
        tensor.values, tensor.used_by = values, []
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGPU({self.values})"

    def record_stream(self, stream: Stream) -> None:
        self.used_by.append(stream)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} of a tensor of the GPU outside of `pretend_gpu`")


class _Machine(TorchDispatchMode):
    """Computes on the CPU what is asked of the GPU, and records what happens between them."""

    def __init__(self):
        super().__init__()
        self.record = Record()
        self.pinned = WeakIdKeyDictionary()
        self.streams = [Stream()]  # the innermost comes last

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        device = kwargs.get("device")
        tensors = [leaf for leaf in _leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, OnGPU) for tensor in tensors)
        to_gpu = on_gpu if device is None else torch.device(device).type in (GPU.type, INSIDE.type)
        if kind := self._kind(name, args, kwargs, tensors, on_gpu, to_gpu):
            self.record.events.append(Event(kind, f"{_own_line()} {name}", self.streams[-1]))
        if device is not None:
            kwargs["device"] = torch.device("cpu")
        out = func(*_map(_values, args), **_map(_values, kwargs))
        if func.is_view and args[0] in self.pinned:  # the same memory
            for part in _leaves(out):
                self.pinned[part] = True
        if name == "_pack_padded_sequence" and on_gpu:
            return OnGPU(out[0]), out[1]
        if name == "_local_scalar_dense" or not to_gpu:
            return out
        out = _map(lambda leaf: OnGPU(leaf) if isinstance(leaf, Tensor) else leaf, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if on_gpu else out

    def _kind(
        self, name: str, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor], on_gpu: bool, to_gpu: bool
    ) -> str | None:
        """Of which kind an operation is, if it concerns both."""
        if name == "_local_scalar_dense":
            return "read" if on_gpu else None
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            target_on_gpu = to_gpu if name == "_to_copy" else isinstance(args[0], OnGPU)
            if isinstance(source, OnGPU) or not target_on_gpu:
                return "read" if isinstance(source, OnGPU) and not target_on_gpu else None
            non_blocking = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            return "copy" if source in self.pinned and non_blocking else "wait"
        if not on_gpu:
            return None
        # a number may be anywhere; what else is needed is copied
        elsewhere = name not in PACKING and any(tensor.ndim and not isinstance(tensor, OnGPU) for tensor in tensors)
        masked = name in INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        return "wait" if elsewhere or masked or repeats or name in SIZED_BY_VALUES else None


def _leaves(tree: Any) -> Iterator[Any]:
    """What arguments of an operation hold, in the order of the tree."""
    if isinstance(tree, tuple | list | dict):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(branch)
    else:
        yield tree


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with other leaves."""
    if isinstance(tree, dict):
        return {name: _map(change, branch) for name, branch in tree.items()}
    if isinstance(tree, tuple | list):
        return (list if isinstance(tree, list) else tuple)(_map(change, branch) for branch in tree)
    return change(tree)


def _values(leaf: Any) -> Any:
    if isinstance(leaf, OnGPU):
        return leaf.values
    if isinstance(leaf, Tensor) and leaf.device == INSIDE:  # a list as an index, which is lost: its copy is waited for
        return torch.zeros(leaf.shape, dtype=leaf.dtype)
    return leaf


def _own_line() -> str:
    folders = tuple(f"{ROOT / name}/" for name in ("modules", "dataloaders"))
    for frame, number in traceback.walk_stack(None):
        if frame.f_code.co_filename.startswith(folders):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()}:{number}"
    return "elsewhere"


@contextlib.contextmanager
def pretend_gpu() -> Iterator[Record]:
    """Within this there is a GPU, `GPU`, as far as tensors are concerned; autocast leaves them as they are."""
    machine = _Machine()

    def pin(tensor: Tensor) -> Tensor:
        pinned = tensor.clone()
        machine.pinned[pinned] = True
        return pinned

    @contextlib.contextmanager
    def stream(inner: Stream) -> Iterator[None]:
        machine.streams.append(inner)
        yield
        machine.streams.pop()

    only_lift = torch._C._only_lift_cpu_tensors()
    # a backward pass in threads would ask the machine for its GPUs
    with pytest.MonkeyPatch.context() as patch, torch.autograd.set_multithreading_enabled(False):
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True)
        patch.setattr(torch, "is_autocast_enabled", lambda *args: False)  # nothing is cast, and so no copy may be
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "stream", stream)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: machine.streams[-1])
        patch.setattr(Tensor, "pin_memory", pin)
        patch.setattr(Tensor, "is_pinned", lambda tensor: tensor in machine.pinned)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(…, device=GPU) is a tensor of the CPU and a copy
        try:
            with machine:
                yield machine.record
        finally:
            torch._C._set_only_lift_cpu_tensors(only_lift)


def move_to_gpu(module: nn.Module) -> nn.Module:
    """Move a module there; its parameters become others, so what holds them is made behind this."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return module.to(GPU)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
