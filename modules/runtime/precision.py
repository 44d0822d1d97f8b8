"""Numeric precision of a run."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

PRECISIONS = ("amp", "fp32", "bf16", "fp16", "fp64")
_HALF = torch.float16
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
    _ATTENTION,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


@dataclass(frozen=True)
class Precision:
    """What the encoders compute in; trained weights, losses and selections stay in fp32.

    Attributes:
        name: fp32, bf16, fp16 or fp64.
        device: where.
    """

    name: str
    device: torch.device

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context the encoders run in."""
        if self.name in ("fp32", "fp64"):
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        stack = contextlib.ExitStack()
        stack.enter_context(self.products())
        stack.enter_context(torch.autocast(self.device.type, dtype=dtype))
        return stack

    def products(self) -> contextlib.AbstractContextManager:
        """The context of backward passes, which is within `autocast`, too: fp16 as fast as the device allows."""
        slow = self.name == "fp16" and self.device.type == "cpu"
        return WideProducts() if slow else contextlib.nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling: needed in fp16, does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.name == "fp64" else torch.float32


class WideProducts(TorchDispatchMode):
    """fp16 products on a CPU: taken in fp32 of the fp16 values, and rounded to fp16, as a GPU's tensor cores do.

    Few CPUs multiply in fp16, and what torch does on the others takes ten times as long as fp32.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call an operation."""
        kwargs = kwargs or {}
        if func not in _PRODUCTS or not any(isinstance(value, Tensor) and value.dtype == _HALF for value in args):
            return func(*args, **kwargs)
        found = func(*_cast(args, _HALF, torch.float32), **_cast(kwargs, _HALF, torch.float32))
        if func is _ATTENTION:  # of which the sums of exponentials are in fp32 in any case
            return found[0].to(_HALF), *found[1:]
        return _cast(found, torch.float32, _HALF)


def _cast(values: Any, before: torch.dtype, after: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda value: value.to(after) if value.dtype == before else value, values)


def choose_precision(name: str, device: torch.device) -> Precision:
    """Resolve ``amp``: bf16 where the device computes in it, else fp16 on a GPU and fp32 on a CPU.

    Everything that computes comes by here, so that cuDNN's TF32 is off in this process from then on.

    Args:
        name: one of `PRECISIONS`; fp64 is there for numerical checks.
        device: where the run computes.
    """
    if name == "amp":
        if device.type == "cuda":
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            name = "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"
    # cuDNN's convolutions in fp32 round to ten bits otherwise; in every precision some are in fp32, such as those that
    # regions and numbers of tokens are chosen by
    torch.backends.cudnn.allow_tf32 = False
    return Precision(name, device)


def _cpu_has_bf16() -> bool:
    """Whether oneDNN, which does the work on CPUs, computes in bf16 on this one."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
