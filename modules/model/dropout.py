"""Random draws that belong to a sample, not to a worker or a process.

Whatever is drawn, an epoch's order, a video's frames, a dropout mask, is a function of the seed, the epoch or step and
the sample. Nothing here holds state, so nothing has to be saved: a resumed run repeats the draws of an uninterrupted
one, and two processes that share a batch draw what one process would have drawn.
"""

import torch
from torch import Tensor, nn

_MASK32 = 0xFFFFFFFF
# what the draws of a text encoder and of a head are told apart by from a video encoder's, which are folded by layer
TEXT, HEAD = 2**20, 2**20 + 1


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


def uniform_bits(keys: Tensor, rows: Tensor, count: int) -> Tensor:
    """Uniform 16-bit integers for rows of a sample, by hashing: `count` for each row.

    A row's draws are a function of the sample's key and the row's number alone, so that some rows can be drawn without
    the others. Rows and columns are scrambled by themselves and their sums once more, in 32 bits, which the machine's
    own arithmetic wraps around: of what is done for each element most would otherwise be waiting for memory. Each hash
    serves two elements.

    Args:
        keys: (B,) int64.
        rows: (B, R) or (1, R) int64, the numbers of the rows.
        count: draws for each row.

    Returns:
        (B, R, count) int16 in [−2¹⁵, 2¹⁵).
    """
    low, high = keys & _MASK32, keys >> 32
    scrambled_rows = _mix32(_mix32(rows ^ low[:, None]) + high[:, None])  # (B, R)
    columns = _mix32(torch.arange((count + 1) // 2, device=keys.device))
    bits = _as_int32(scrambled_rows)[..., None] + _as_int32(columns)  # (B, R, count / 2)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        bits ^= (bits >> shift) & (_MASK32 >> shift)  # the mask makes the shift one of unsigned numbers
        bits *= factor
    return bits.view(torch.int16)[..., :count]


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

    def forward(self, x: Tensor, keys: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """Drop elements of each sample.

        Args:
            x: (B, …, C), one sample a row.
            keys: (B,) int64 from `fold_in`; needed in training only.
            rows: (B, …) int64, the number of each vector of C in its sample, where x holds some of them only; None
                where it holds all of them, in order.

        Raises:
            ValueError: in training without keys.
        """
        if not self.training or self.p == 0.0:
            return x
        if keys is None:
            raise ValueError("dropout in training needs one key a sample: pass sample_keys, or keys to a head")
        if rows is None:
            rows = torch.arange(x[0, ..., 0].numel(), device=x.device)[None]
        bits = uniform_bits(keys, rows.flatten(1), x.shape[-1]).view(x.shape)
        dropped = min(round(self.p * 2**16), 2**16 - 1)  # of the 2¹⁶ values
        return x * (bits >= dropped - 2**15) * (2**16 / (2**16 - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"
