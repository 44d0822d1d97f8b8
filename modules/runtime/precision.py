"""Numeric precision of a run."""

import contextlib
from dataclasses import dataclass

import torch

PRECISIONS = ("amp", "fp32", "bf16", "fp16", "fp64")


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
        return torch.autocast(self.device.type, dtype=dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Loss scaling: needed in fp16, does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return torch.float64 if self.name == "fp64" else torch.float32


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
