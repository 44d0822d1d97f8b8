"""Random draws that belong to a sample, not to a worker or a process.

Whatever is drawn, an epoch's order, a video's frames, a dropout mask, is a function of the seed, the epoch or step and
the sample. Nothing here holds state, so nothing has to be saved: a resumed run repeats the draws of an uninterrupted
one, and two processes that share a batch draw what one process would have drawn.
"""

import torch
from torch import Tensor, nn

_MASK32 = 0xFFFFFFFF
_WEYL = 0x9E3779B9 - 2**32  # 2³² over the golden ratio
# what the draws of a text encoder and of a head are told apart by from a video encoder's, which are folded by layer
TEXT, HEAD = 2**20, 2**20 + 1


def _mix32(x: Tensor | int) -> Tensor | int:
    """A bijective scrambling of 32-bit values held in int64 or Python's int: two rounds of multiply and xor-shift."""
    x = x & _MASK32
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _MASK32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _MASK32
    return x ^ (x >> 15)


def fold_in(keys: Tensor, data: int | Tensor) -> Tensor:
    """New keys from old ones: independent draws for another layer or another use.

    Args:
        keys: (B,) int64, one a sample.
        data: what tells the new draw from the others made with the same keys.

    Returns:
        (B,) int64, not negative.
    """
    low = _mix32((keys & _MASK32) ^ _mix32(data))
    high = _mix32((keys >> 32) + low)
    return ((high >> 1) << 32) | low


def fold_in_each(keys: Tensor, count: int) -> Tensor:
    """`fold_in` of 0 … count − 1 at once: (…, B) → (…, count, B)."""
    return fold_in(keys[..., None, :], torch.arange(count, device=keys.device)[:, None])


def row_seeds(keys: Tensor, count: int) -> Tensor:
    """What the draws for each row of a sample begin with.

    A row's draws are a function of the sample's key and the row's number alone, so that some rows can be drawn without
    the others.

    Args:
        keys: (…, B) int64.
        count: rows of a sample.

    Returns:
        (…, B, count) int32.
    """
    low, high = _as_int32(keys & _MASK32)[..., None], _as_int32(keys >> 32)[..., None]
    rows = torch.arange(count, dtype=torch.int32, device=keys.device)
    return _scramble_(_scramble_(rows ^ low).add_(high))


def uniform_bits(seeds: Tensor, count: int) -> Tensor:
    """Uniform 16-bit integers for rows of samples, by hashing: `count` for each row.

    The columns of a row are a Weyl sequence that begins with its seed, scrambled in 32 bits, which the machine's own
    arithmetic wraps around: of what is done for each element most would otherwise be waiting for memory. Each hash
    serves two elements.

    Args:
        seeds: (…) int32, of `row_seeds`.
        count: draws for each row.

    Returns:
        (…, count) int16 in [−2¹⁵, 2¹⁵).
    """
    columns = torch.arange((count + 1) // 2, dtype=torch.int32, device=seeds.device) * _WEYL
    bits = seeds[..., None] + columns  # (…, count / 2)
    return _scramble_(bits).view(torch.int16)[..., :count]


def _scramble_(x: Tensor) -> Tensor:
    """`_mix32` of int32, in place."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x ^= (x >> shift) & (_MASK32 >> shift)  # the mask makes the shift one of unsigned numbers
        x *= factor
    x ^= (x >> 15) & (_MASK32 >> 15)
    return x


def _as_int32(x: Tensor) -> Tensor:
    """32-bit values held in int64 as int32 with the same bits."""
    return (x - ((x >> 31) << 32)).to(torch.int32)


class SampleDropout(nn.Module):
    """Dropout whose mask is a function of each sample's key.

    `torch.nn.Dropout` draws from the state of the process, so its mask for a sample depends on which process holds it
    and on what was drawn before.
    """

    def __init__(self, p: float):
        """p: the share of elements set to zero, in [0, 1); to the nearest of 2⁻¹⁶."""
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout must be in [0, 1), found {p}")
        self.p = p

    def forward(self, x: Tensor, keys: Tensor | None) -> Tensor:
        """Drop elements of each sample.

        Args:
            x: (B, …, C), one sample a row.
            keys: (B,) int64 from `fold_in`; needed in training only.

        Raises:
            ValueError: in training without keys.
        """
        if not self.drops or keys is None:
            return self.keep(x, None)
        seeds = row_seeds(keys, x[0, ..., 0].numel()).view(x.shape[:-1])
        return self.keep(x, self.kept(seeds, x.shape[-1]))

    def kept(self, seeds: Tensor, count: int) -> Tensor:
        """Which elements of vectors stay: (…) int32 of `row_seeds`, one for each vector → (…, count) bool."""
        return uniform_bits(seeds, count) >= self._num_dropped - 2**15

    def keep(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """Drop elements where it is known which ones stay.

        Args:
            x: (…).
            kept: of its shape, from `kept`; needed in training only.

        Raises:
            ValueError: in training without it.
        """
        if not self.drops:
            return x
        if kept is None:
            raise ValueError("dropout in training needs one key a sample: pass sample_keys, or keys to a head")
        return x * kept * (2**16 / (2**16 - self._num_dropped))

    @property
    def _num_dropped(self) -> int:
        """Of the 2¹⁶ values of a draw."""
        return min(round(self.p * 2**16), 2**16 - 1)

    @property
    def drops(self) -> bool:
        """Whether anything is dropped: in training, with a share above 0."""
        return self.training and self.p > 0

    def extra_repr(self) -> str:
        return f"p={self.p}"
