"""The text encoder: CLIP's text tower with a prompting before its blocks."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.errors import UserError
from modules.clip.text import ClipTextTower, WholeTextTower
from modules.kernels.copies import send
from modules.model.dropout import TEXT, fold_in, fold_in_each
from modules.model.prompting import TextPrompting

# Captions go through the tower in groups of exactly this many, the last one filled up: a matrix product of another size
# may round differently, and then a caption's embedding would depend on when it was first needed.
GROUP = 32
MAX_KEPT = 2**19  # embeddings that are kept, more than any training list has captions: 1 GB of ViT-B/32's
WITHOUT_GRADIENT = 256  # captions at a time where the tower trains and no gradient is asked for
COUNTED_AT_ONCE = 4096  # captions


def check_max_words(max_words: int, context_length: int, taken: int = 0) -> None:
    """Refuse a number of tokens a caption that a text tower does not take.

    Args:
        max_words: the number.
        context_length: the tower's, less what prompts take of it.
        taken: how many those are.

    Raises:
        UserError: if it leaves no room for a word between start and end, or is more than the tower's context.
    """
    if max_words < 3:
        raise UserError(f"--max_words counts start and end and must be at least 3, found {max_words}")
    if max_words > context_length:
        beside = f" beside the method's {taken} prompts" if taken else ""
        raise UserError(
            f"--max_words {max_words} is more than the context of this CLIP's text tower, {context_length} tokens with "
            f"start and end{beside}: give at most {context_length}"
        )


class TextEncoder(nn.Module):
    """Embeds captions with a CLIP tower.

    Where nothing in it trains, each caption is embedded once and kept, on the tower's device: its embedding never
    changes. Beyond `MAX_KEPT` captions the oldest go.

    Attributes:
        max_words: tokens a caption is cut to, start and end included.
        context_length: the most that it could be.
        checkpoint_activations: as in `VideoEncoder`.
    """

    def __init__(
        self,
        tower: ClipTextTower | WholeTextTower,
        tokenizer,
        max_words: int,
        prompting: TextPrompting | None = None,
        unit_length: bool = True,
    ):
        """Put the parts together.

        Args:
            tower: CLIP's text tower.
            tokenizer: its tokenizer.
            max_words: at least 3, and no more than the tower's context leaves beside the prompts.
            prompting: what stands before the blocks of a `ClipTextTower`; None for nothing.
            unit_length: whether embeddings are scaled to length 1.

        Raises:
            UserError: if `max_words` does not fit.
        """
        super().__init__()
        taken = 0 if prompting is None else prompting.positions_taken
        self.context_length = tower.context_length - taken
        check_max_words(max_words, self.context_length, taken)
        self.tower = tower
        self.tokenizer = tokenizer
        self.max_words = max_words
        self.prompting = TextPrompting() if prompting is None else prompting
        self.unit_length = unit_length
        self.checkpoint_activations = False
        self._kept: dict[str, Tensor] = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TextEncoder":
        """Move, or change the dtype: what was kept belongs to the device and the dtype from before."""
        self._kept.clear()
        return super()._apply(fn, recurse)

    def tokenize(self, captions: Sequence[str]) -> Tensor:
        """(N, max_words) int64: longer captions are cut, with start and end kept; shorter ones are padded."""
        return self.tokenizer(list(captions), context_length=self.max_words)

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

    def forward(self, captions: Sequence[str], sample_keys: Tensor | None = None) -> Tensor:
        """Embed captions: N strings → (N, E), on the tower's device.

        Args:
            captions: the texts.
            sample_keys: (N,) int64, what a prompting may draw dropout from; in training only.
        """
        if not any(parameter.requires_grad for parameter in self.parameters()):
            return self._embed_once(captions)
        ids, keys = self.tokenize(captions), None if sample_keys is None else fold_in(sample_keys, TEXT)
        if torch.is_grad_enabled():
            return self._embed(ids, keys)
        parts = ids.split(WITHOUT_GRADIENT)
        of_parts = [None] * len(parts) if keys is None else keys.split(WITHOUT_GRADIENT)
        return torch.cat([self._embed(*part) for part in zip(parts, of_parts, strict=True)])

    @torch.no_grad()
    def _embed_once(self, captions: Sequence[str]) -> Tensor:
        """Embed what was not embedded before."""
        new = list(dict.fromkeys(c for c in captions if c not in self._kept))
        for start in range(0, len(new), GROUP):
            group = new[start : start + GROUP]
            embeddings = self._embed(self.tokenize(group + [""] * (GROUP - len(group))))
            self._kept.update(zip(group, embeddings[: len(group)].clone(), strict=True))
        found = torch.stack([self._kept[c] for c in captions])
        for caption in list(islice(self._kept, max(0, len(self._kept) - MAX_KEPT))):  # the oldest
            del self._kept[caption]
        return found

    def _embed(self, ids: Tensor, keys: Tensor | None = None) -> Tensor:
        """(N, W) int64 → (N, E)."""
        tower = self.tower
        ids = send(ids, next(tower.parameters()).device)
        if isinstance(tower, WholeTextTower):
            embeddings = tower.encode(F.pad(ids, (0, tower.context_length - ids.shape[1])))
        else:
            text = self.prompting.begin(tower, ids)
            tokens, length = text.tokens, text.tokens.shape[1]
            layers = [None] * len(tower.blocks) if keys is None else fold_in_each(keys, len(tower.blocks)).unbind()
            for layer, block in enumerate(tower.blocks):
                extra = self.prompting.before(tower, layer, text, layers[layer])
                mask = tower.causal_mask(length, 0 if extra is None else extra.shape[-2])
                if extra is not None and text.shown is not None:
                    among_words = mask[:, :length].expand(len(tokens), -1, -1)
                    mask = torch.cat([among_words, text.shown], dim=-1)[:, None]  # (N, 1, W, W + K)
                extra = None if extra is None else extra.expand(len(tokens), -1, -1)
                run = partial(block, extra=extra, mask=mask, **self.prompting.for_adapters(layer, layers[layer]))
                if self.checkpoint_activations and self.training:
                    tokens = checkpoint(run, tokens, use_reentrant=False, preserve_rng_state=False)
                else:
                    tokens = run(tokens)
            embeddings = tower.project(tokens, text.ends)
        return F.normalize(embeddings, dim=-1) if self.unit_length else embeddings


class _TokensOfWords(dict[str, int]):
    """How many tokens a word becomes, by word; each is taken apart when it is first asked for."""

    def __init__(self, encode: Callable[[str], list[int]]):
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self._encode(word))
        return number
