"""CLIP's frozen text tower, which embeds each caption once."""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from modules.clip.vision import FrozenModule

# Captions go through the tower in groups of exactly this many, the last one filled up: a matrix product of another size
# may round differently, and then a caption's embedding would depend on when it was first needed.
GROUP = 32
COUNTED_AT_ONCE = 4096  # captions


def check_max_words(max_words: int, context_length: int) -> None:
    """Refuse a number of tokens a caption that a text tower does not take.

    Raises:
        UserError: if it leaves no room for a word between start and end, or is more than the tower's context.
    """
    if max_words < 3:
        raise UserError(f"--max_words counts start and end and must be at least 3, found {max_words}")
    if max_words > context_length:
        raise UserError(
            f"--max_words {max_words} is more than the context of this CLIP's text tower, {context_length} tokens with "
            f"start and end: give at most {context_length}"
        )


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
            max_words: at least 3, and no more than the tower's context.

        Raises:
            UserError: if it is not.
        """
        super().__init__()
        check_max_words(max_words, clip_model.context_length)
        self.clip_model = clip_model
        self.tokenizer = tokenizer
        self.context_length = clip_model.context_length
        self.max_words = max_words
        self._kept: dict[str, Tensor] = {}
        self.freeze()

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(N, context length) int64: cut to `max_words` with start and end kept, padded with zeros."""
        tokens = self.tokenizer(list(captions), context_length=self.max_words)
        return F.pad(tokens, (0, self.context_length - self.max_words))

    def count_cut(self, captions: Sequence[str]) -> int:
        """How many of some captions `tokenize` cuts; a caption that is there twice counts twice."""
        times = Counter(captions)
        # open_clip's wrappers of other tokenizers have no `encode`
        find = self._longer_than_max_words if hasattr(self.tokenizer, "encode") else self._losing_tokens
        return sum(times[caption] for caption in find(list(times)))

    def _longer_than_max_words(self, captions: Sequence[str]) -> list[str]:
        """Those whose tokens do not fit between start and end, for CLIP's own tokenizer.

        It takes a plain caption word by word, so that the words of many captions are taken apart once each.
        """
        encode: Callable[[str], list[int]] = self.tokenizer.encode
        room, lengths, longer = self.max_words - 2, _TokensOfWords(encode), []
        for caption in captions:
            if caption.isascii() and caption.isprintable() and "&" not in caption:
                # a token is at least a character; other captions may be changed before they are taken apart
                is_longer = len(caption) > room and sum(map(lengths.__getitem__, caption.split())) > room
            else:
                is_longer = len(encode(caption)) > room
            if is_longer:
                longer.append(caption)
        return longer

    def _losing_tokens(self, captions: Sequence[str]) -> list[str]:
        """Those of which one token more shows where there is room for one more, for any tokenizer that pads."""
        padding = self.tokenizer([""], context_length=8)[0].mode().values  # most of what is made of no text
        losing = []
        for start in range(0, len(captions), COUNTED_AT_ONCE):
            part = list(captions[start : start + COUNTED_AT_ONCE])
            now, more = (
                (self.tokenizer(part, context_length=length) == padding).sum(1)
                for length in (self.max_words, self.max_words + 1)
            )
            losing += [caption for caption, filled in zip(part, (now == more).tolist(), strict=True) if filled]
        return losing

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


class _TokensOfWords(dict[str, int]):
    """How many tokens a word becomes, by word; each is taken apart when it is first asked for."""

    def __init__(self, encode: Callable[[str], list[int]]):
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self._encode(word))
        return number
