"""Frozen weights as a low precision needs them, cast once instead of in every step."""

import torch
from torch import Tensor, nn


class FrozenCopies:
    """Copies of frozen weights: what autocast makes anew wherever such a weight is used.

    Autocast keeps the casts of trained weights for the length of its context, and none of frozen ones. A copy takes
    half of a weight's memory; it is made again where the weight has been written to, or lies on another device.
    """

    def __init__(self):
        self._kept: dict[int, tuple[nn.Parameter, tuple[object, ...], Tensor]] = {}

    def of(self, weight: Tensor, factor: float = 1.0) -> Tensor:
        """A weight times a factor, as autocast would cast it.

        Args:
            weight: one that trains, is no parameter, does not know when it is written to or is being compiled is left
                to autocast.
            factor: always the same for one weight.
        """
        kind = weight.device.type
        known = torch.amp.is_autocast_available(kind)
        cast = known and torch.is_autocast_enabled(kind) and weight.dtype == torch.float32
        dtype = torch.get_autocast_dtype(kind) if cast else weight.dtype
        if factor == 1.0 and dtype == weight.dtype:
            return weight
        frozen = isinstance(weight, nn.Parameter) and not weight.requires_grad and not weight.is_inference()
        if not frozen or torch.compiler.is_compiling():
            return weight if factor == 1.0 else weight * factor
        state = weight._version, weight.device, dtype, factor
        source, made_of, copy = self._kept.get(id(weight), (None, (), weight))
        if source is not weight or made_of != state:
            with torch.inference_mode(False), torch.no_grad():  # what is encoded first may train later
                copy = (weight if factor == 1.0 else weight * factor).to(dtype)
            self._kept[id(weight)] = weight, state, copy
        return copy
