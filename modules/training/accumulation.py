"""Exact gradient accumulation: the gradient of a loss over a whole batch, with a part of the batch in memory at a time.

A contrastive loss compares every item with every other, so that it is no sum over parts. But it reaches the encoders
through embeddings alone, and an embedding depends on its own item: first all embeddings are made without a graph, then
the loss and its gradient at each of them, and last each part is embedded once more, with a graph, through which the
gradient of its embeddings goes on. What stands behind the embeddings, a head or a trained scale, has its gradient from
the loss at once. That is the gradient of the whole batch, at the price of one more forward pass of the encoders. (The
idea is GradCache's, Gao et al., 2021.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from common.errors import UserError
from modules.model.video_text import VideoTextModel


class Rows(NamedTuple):
    """What a batch has of one kind, to be embedded a part at a time.

    Attributes:
        count: how many rows there are.
        encode: a run of rows → (n, …); the same values however often it is asked, and whatever runs it is asked for.
    """

    count: int
    encode: Callable[[slice], Tensor]


def check_can_accumulate(model: VideoTextModel) -> None:
    """Refuse a model for which the parts of a batch are not the batch.

    Raises:
        UserError: if its method keeps statistics of what it has seen, as a BatchNorm does.
    """
    if names := [name for name, _ in model.trained_buffers()]:
        raise UserError(
            f"--accumulate: the method keeps statistics of its batches ({', '.join(names[:3])}), which those of parts "
            "are not: give --accumulate 1"
        )


def cut(count: int, parts: int) -> list[slice]:
    """Runs of 0 … count − 1, in order, whose lengths differ by one at most; fewer than `parts` where none is left."""
    parts = min(parts, count)
    return [slice(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def backward_in_parts(
    kinds: Sequence[Rows],
    parts: int,
    loss: Callable[..., Tensor],
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Tensor:
    """Add the gradient of a loss of embeddings to that of all parameters it depends on.

    Args:
        kinds: what is embedded, such as texts and videos.
        parts: how many parts the rows of each kind are cut into.
        loss: the embeddings of all rows, of one kind after the other → a scalar.
        scale: what stands between the loss and its gradient, such as that of a GradScaler.

    Returns:
        The loss.
    """
    runs = [cut(kind.count, parts) for kind in kinds]
    # in the same parts as below: what a rounding may decide is decided alike
    with torch.no_grad():
        embeddings = [torch.cat([kind.encode(run) for run in of]) for kind, of in zip(kinds, runs, strict=True)]
    for embedding in embeddings:
        embedding.requires_grad_()
    value = loss(*embeddings)
    scale(value).backward()
    for kind, of, embedding in zip(kinds, runs, embeddings, strict=True):
        for run in of:
            part = kind.encode(run)
            if not part.requires_grad:  # nothing in its encoder trains
                break
            part.backward(embedding.grad[run])
    return value.detach()
