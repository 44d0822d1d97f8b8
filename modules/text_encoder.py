"""CLIP's frozen text tower, which embeds each caption once."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.clip_vision import FrozenModule
from modules.errors import UserError

# Captions go through the tower in groups of exactly this many, the last one filled up: a matrix product of another size
# may round differently, and then a caption's embedding would depend on when it was first needed.
GROUP = 32


class FrozenTextEncoder(FrozenModule):
    """Embeds captions, keeping each embedding: the tower is frozen and unprompted, so it never changes.

    Attributes:
        max_words: tokens a caption is cut to, start and end included.
    """

    def __init__(self, clip_model: torch.nn.Module, tokenizer, max_words: int):
        """Wrap a text tower.

        Args:
            clip_model: an open_clip model; its weights are shared, not copied, and frozen.
            tokenizer: its tokenizer.
            max_words: at least 3; more than the context length is the context length.

        Raises:
            UserError: if max_words leaves no room for a word between start and end.
        """
        super().__init__()
        if max_words < 3:
            raise UserError(f"max_words counts start and end and must be at least 3, found {max_words}")
        self.clip_model = clip_model
        self.tokenizer = tokenizer
        self.context_length = clip_model.context_length
        self.max_words = min(max_words, self.context_length)
        self._kept: dict[str, Tensor] = {}
        self.freeze()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(N, context length) int64: cut to `max_words` with start and end kept, padded with zeros."""
        tokens = self.tokenizer(list(captions), context_length=self.max_words)
        return F.pad(tokens, (0, self.context_length - self.max_words))

    @torch.no_grad()
    def forward(self, captions: Sequence[str], sample_keys: Tensor | None = None) -> Tensor:
        """Embed captions: N strings → (N, E), unit length, on the tower's device; nothing here draws from the keys."""
        new = list(dict.fromkeys(c for c in captions if c not in self._kept))
        parameter = next(self.clip_model.parameters())
        for start in range(0, len(new), GROUP):
            group = new[start : start + GROUP]
            tokens = self.tokenize(group + [""] * (GROUP - len(group))).to(parameter.device)
            embeddings = F.normalize(self.clip_model.encode_text(tokens).to(parameter.dtype), dim=-1)
            self._kept.update(zip(group, embeddings.cpu(), strict=False))
        return torch.stack([self._kept[c] for c in captions]).to(parameter.device)
