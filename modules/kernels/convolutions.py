"""3D convolutions over time and the patch grid, as fast and as right as a CPU can do them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


class DepthwiseConv3d(nn.Conv3d):
    """The 3D convolution of N^s and N^t: depthwise, 3×3 on the grid, no bias, N(0, 1 / its kernel's numbers).

    Without bias, nothing in gives nothing out: where nothing changes, N^t finds no variation.

    Attributes:
        undecayed: its kernel has no weight decay: W^s and W^t do not depend on the kernel's scale, so that nothing but
            the gradient's noise would work against a decay, and nothing is gained by one.
    """

    undecayed = frozenset({"weight"})

    def __init__(self, width: int, time_padding: int, depth: int = 3):
        """width: C. time_padding: frames of zeros at either end. depth: of the kernel, in time."""
        super().__init__(width, width, (depth, 3, 3), padding=(time_padding, 1, 1), groups=width, bias=False)
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, T, G, G) → (B, C, T′, G, G)."""
        if volume.device.type == "cpu":
            return _DepthwiseConv3dOnCPU.apply(volume, self.weight, self.padding[0])
        return super().forward(volume)


class _DepthwiseConv3dOnCPU(torch.autograd.Function):
    """A depthwise convolution, 3×3 on the grid, whose gradients are made of what oneDNN has fast depthwise kernels for.

    It has one for the 3D convolution itself but none for its gradients, which take ten times as long. The gradient of
    the input is the convolution of the output's with the kernel turned around; that of the kernel is, slice by slice in
    time, the gradient of a 2D convolution of frames.
    """

    @staticmethod
    def forward(ctx, volume: Tensor, weight: Tensor, time_padding: int) -> Tensor:
        ctx.save_for_backward(volume, weight)
        ctx.time_padding = time_padding
        return F.conv3d(volume, weight, padding=(time_padding, 1, 1), groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        volume, weight = ctx.saved_tensors
        grad_volume = grad_weight = None
        if ctx.needs_input_grad[0]:
            padding = (weight.shape[2] - 1 - ctx.time_padding, 1, 1)
            grad_volume = F.conv3d(grad, weight.flip(2, 3, 4), padding=padding, groups=len(weight))
        if ctx.needs_input_grad[1]:
            slices = [_kernel_slice_gradient(volume, grad, k - ctx.time_padding) for k in range(weight.shape[2])]
            grad_weight = torch.stack(slices, dim=2)  # of (C, 1, 3, 3) each → (C, 1, depth, 3, 3)
        return grad_volume, grad_weight, None


def _kernel_slice_gradient(volume: Tensor, grad: Tensor, shift: int) -> Tensor:
    """Gradient of the kernel's slice that sees frame t + shift where the output is frame t.

    Args:
        volume: (B, C, T, G, G), the input. grad: (B, C, T′, G, G), the output's gradient.

    Returns:
        (C, 1, 3, 3).
    """
    channels = volume.shape[1]
    first, last = max(0, -shift), min(grad.shape[2], volume.shape[2] - shift)  # the others see padding
    seen = _frames_side_by_side(volume, first + shift, last + shift)
    grads = _frames_side_by_side(grad, first, last)
    return conv2d_weight(seen, (channels, 1, 3, 3), grads, padding=1, groups=channels)


def _frames_side_by_side(volume: Tensor, first: int, last: int) -> Tensor:
    """Some frames of videos as images, in channels-last memory: (B, C, T, G, G) → (B·(last − first), C, G, G)."""
    return volume.permute(0, 2, 3, 4, 1)[:, first:last].flatten(0, 1).permute(0, 3, 1, 2)


class TemporalConv3d(nn.Conv3d):
    """A 3×3×3 convolution that keeps the number of frames and is right for one and two of them in bf16 on a CPU, too.

    Where the kernel is deeper than the volume, oneDNN's bf16 kernels use memory that nothing was written to: for two
    frames in the gradient of the weights, at any width, and for one frame of one channel in the output. Whether that
    becomes NaN or a wrong number is chance. With zeros before and behind that are frames of their own they are right.
    """

    def __init__(self, width: int):
        """width: C."""
        super().__init__(width, width, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, T, G, G) → (B, C, T, G, G)."""
        if volume.shape[2] >= 3 or not _is_bf16_on_cpu(volume):
            return super().forward(volume)
        return F.conv3d(F.pad(volume, (0, 0, 0, 0, 1, 1)), self.weight, self.bias, padding=(0, 1, 1))


def _is_bf16_on_cpu(volume: Tensor) -> bool:
    """Whether a convolution of this volume is one of oneDNN's in bf16."""
    if volume.device.type != "cpu":
        return False
    return (torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else volume.dtype) == torch.bfloat16
