"""What one training step asks of a GPU, counted without one: operations, bytes, floating-point operations.

A step runs on fake tensors, which have shapes and no values, and every call that reaches PyTorch's dispatcher is
counted, as `torch.utils._python_dispatch.TorchDispatchMode` sees it:

- an *operation* is a call of ``aten`` whose result is no view of its input (``view``, ``transpose``, ``slice``,
  ``_unsafe_view``, ``detach``, … are none);
- its *bytes* are those of all tensors that go into it and come out of it, whether or not a cache would hold them;
- its *FLOPs* are two a multiplication with addition, of matrix products and convolutions forward and backward;
  attention, elementwise work and reductions have none here.

Counted is what the benchmark times: encoding in training mode, the contrastive loss, the gradients, their clipping and
AdamW; for the floor the frozen CLIP's forward pass and the gradient of its input. The tensors are a CPU's, on which
attention is one call as on a GPU; N^s and N^t are PyTorch's own convolutions, as they are on a GPU, and AdamW is fused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modules.kernels.convolutions import DepthwiseConv3d
from scripts.benchmark.model import SUBJECTS, Setup, Subject, make_subject

VIEWS = {"_unsafe_view", "detach", "alias", "lift_fresh"}  # what else makes no tensor


@dataclass
class Counts:
    """Of one step; see above."""

    operations: int = 0
    bytes: int = 0
    flops: int = 0


class Counter(TorchDispatchMode):
    """Counts what is called while it is on.

    Attributes:
        counts: so far.
    """

    def __init__(self):
        super().__init__()
        self.counts = Counts()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        namespace, name = str(func).split(".")[:2]
        if namespace != "aten" or func.is_view or name in VIEWS:
            return out
        self.counts.operations += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        self.counts.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.counts.flops += flops_of(name, args, out)
        return out


def flops_of(name: str, args: Sequence[Any], out: Any) -> int:
    """Of a matrix product or a convolution, in groups or not; 0 of anything else."""
    if name in ("mm", "bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return 2 * out.numel() * args[1].shape[-1]
    if name == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if name == "convolution_backward":
        grad, _, weight, *_, (of_input, of_weight, _) = args
        return 2 * grad.numel() * weight[0].numel() * (of_input + of_weight)
    return 0


@contextmanager
def convolutions_of_a_gpu() -> Iterator[None]:
    """N^s and N^t without the gradients that are made for CPUs."""
    forward = DepthwiseConv3d.forward
    DepthwiseConv3d.forward = nn.Conv3d.forward
    try:
        yield
    finally:
        DepthwiseConv3d.forward = forward


def count_step(subject: Subject) -> Counts:
    """Counts of one training step, after a first one."""
    with FakeTensorMode(allow_non_fake_inputs=True), convolutions_of_a_gpu():
        subject.train()  # AdamW's first step makes its moments
        with Counter() as counter:
            subject.train()
    return counter.counts


def measure_counts(setup: Setup) -> dict[str, float]:
    """``count.operations.NAME``, ``count.gigabytes.NAME`` and ``count.teraflops.NAME`` of `SUBJECTS`."""
    setup = replace(setup, device="cpu", blank=True)
    clip, results = setup.load_clip(), {}
    for name in SUBJECTS:
        counts = count_step(make_subject(name, clip, setup))
        results |= {
            f"count.operations.{name}": counts.operations,
            f"count.gigabytes.{name}": counts.bytes / 1e9,
            f"count.teraflops.{name}": counts.flops / 1e12,
        }
    return results
