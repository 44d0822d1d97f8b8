"""What tensors hold in a training step, in bytes, and the most of it: counted, on any machine.

Every tensor that a call makes counts from then on until nothing needs its memory any more, whether it is kept for the
backward pass, is a gradient or lives for a moment. On fake tensors, which have shapes and no values, that takes seconds
for any step. Not in it is what operations take for themselves, such as the workspaces of cuDNN and cuBLAS (a CPU's are
small at the size of ViT-B/32: `handed_out` tells), what a GPU's allocator leaves unused between blocks, and the context
of CUDA; nor the next batch, which is copied meanwhile.
"""

import json
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scripts.benchmark.counts import VIEWS, Counter, convolutions_of_a_gpu
from scripts.benchmark.model import Subject


class Held(TorchDispatchMode):
    """Follows what is made while it is on.

    Attributes:
        given: bytes of the tensors that were there before, weights and frames, as far as calls have seen them.
        now: bytes of what was made and is needed.
        most: the most that this has been.
    """

    def __init__(self):
        super().__init__()
        self.given = self.now = self.most = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self.given += self._follow(tensor, self._forget)
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            if func.is_view or func._schema.is_mutable or str(func).split(".")[1] in VIEWS:
                self._follow(tensor, self._forget)  # memory that another tensor has
            else:
                self.now += self._follow(tensor, self._release)
        self.most = max(self.most, self.now)
        return out

    def _follow(self, tensor: Tensor, when_gone: Callable[[int, int], None]) -> int:
        """The bytes of a tensor's memory if it was not seen before, else 0."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return 0
        self._alive.add(storage._cdata)
        weakref.finalize(storage, when_gone, storage._cdata, storage.nbytes())
        return storage.nbytes()

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)

    def _release(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def handed_out(call: Callable[[], object]) -> int:
    """The most bytes that PyTorch's allocator has handed out on a CPU during a call, of what was free before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        found.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return max(totals) - min(totals)


def held_in(call: Callable[[], object]) -> int:
    """The same by this count, of what a call makes."""
    with Held() as held:
        call()
    return held.most


def count_held(subject: Subject) -> tuple[int, int]:
    """Of a training step on fake tensors: the most bytes held, weights and frames among them, and its FLOPs."""
    with FakeTensorMode(allow_non_fake_inputs=True), convolutions_of_a_gpu(), Held() as held:
        subject.train()  # AdamW's first step makes its moments
        with Counter() as counter:
            subject.train()
    return held.given + held.most, counter.counts.flops
