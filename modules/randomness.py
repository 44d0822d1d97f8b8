"""Random draws that belong to a sample, not to a worker or a process.

Whatever is drawn, an epoch's order, a video's frames, a dropout mask, is a function of the seed, the epoch or step and
the sample. Nothing here holds state, so nothing has to be saved: a resumed run repeats the draws of an uninterrupted
one, and two processes that share a batch draw what one process would have drawn.
"""

import hashlib

import torch
from torch import Tensor, nn

_MASK32 = 0xFFFFFFFF


def derive_seed(*parts: int | str) -> int:
    """A seed that depends on every part and on nothing else.

    Args:
        parts: what the draw belongs to, for example ``(seed, "frames", epoch, sample)``.

    Returns:
        An integer in [0, 2⁶³), the same on every platform.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _mix32(x: Tensor) -> Tensor:
    """A bijective scrambling of 32-bit values held in int64: two rounds of multiply and xor-shift."""
    x = x & _MASK32
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK32
    return x ^ (x >> 15)


def fold_in(keys: Tensor, data: int) -> Tensor:
    """New keys from old ones: independent draws for another layer or another use.

    Args:
        keys: (B,) int64, one a sample.
        data: what tells the new draw from the others made with the same keys.

    Returns:
        (B,) int64, not negative.
    """
    low = _mix32((keys & _MASK32) ^ _mix32(torch.as_tensor(data, device=keys.device)))
    high = _mix32((keys >> 32) + low)
    return ((high >> 1) << 32) | low


def uniform_bits(keys: Tensor, count: int) -> Tensor:
    """`count` uniform 32-bit integers a sample, by hashing counters: (B,) int64 → (B, count) int64 in [0, 2³²)."""
    counters = torch.arange(count, device=keys.device)
    return _mix32(_mix32(counters ^ (keys & _MASK32)[:, None]) + (keys >> 32)[:, None])


class SampleDropout(nn.Module):
    """Dropout whose mask is a function of each sample's key.

    `torch.nn.Dropout` draws from the state of the process, so its mask for a sample depends on which process holds it
    and on what was drawn before.
    """

    def __init__(self, p: float):
        """p: the share of elements set to zero, in [0, 1)."""
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout must be in [0, 1), found {p}")
        self.p = p

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Drop elements of each sample.

        Args:
            x: (B, …), one sample a row.
            keys: (B,) int64 from `fold_in`; needed in training only.

        Raises:
            ValueError: in training without keys.
        """
        if not self.training or self.p == 0.0:
            return x
        if keys is None:
            raise ValueError("dropout in training needs one key a sample: pass sample_keys to encode_video")
        bits = uniform_bits(keys, x[0].numel()).view(x.shape)  # (B, …)
        keep = bits >= int(self.p * 2**32)
        return x * keep / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
