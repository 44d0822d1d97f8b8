"""CLIP's text tower, as parts that a prompting can be built around."""

import torch
from open_clip.transformer import ResidualAttentionBlock, Transformer
from torch import Tensor, nn

from modules.clip.block import Block
from modules.clip.vision import UnsupportedCLIP


class ClipTextTower(nn.Module):
    """The text tower of an open_clip model, frozen until a method thaws parts of it.

    A token sees those before it alone, so that nothing behind a caption's end makes a difference to it and a sequence
    need not be filled up to the context length.

    Attributes:
        blocks: its transformer blocks.
        width: D, the width of a token (512 in ViT-B/32).
        context_length: the most tokens it takes (77).
        output_width: E, of an embedding (512).
    """

    def __init__(self, model: nn.Module):
        """Wrap the tower of an open_clip model; its weights are shared, not copied, and frozen.

        Raises:
            UnsupportedCLIP: if the tower is not built like OpenAI's; the message says in what.
        """
        super().__init__()
        text = getattr(model, "text", model)  # open_clip has models that hold the tower and models that are it
        check_structure(text)
        self.token_embedding = text.token_embedding
        self.positional_embedding = text.positional_embedding
        self.blocks = nn.ModuleList(Block(layer) for layer in text.transformer.resblocks)
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.width = text.token_embedding.embedding_dim
        self.context_length = model.context_length
        self.output_width = text.text_projection.shape[1]
        self.requires_grad_(False)

    @property
    def num_layers(self) -> int:
        """L, the number of blocks (12)."""
        return len(self.blocks)

    def ends(self, ids: Tensor) -> Tensor:
        """Where each caption ends, whose token its embedding is read from: (N, W) → (N,); the largest id there is."""
        return ids.argmax(dim=-1)

    def embed(self, ids: Tensor, first: int = 0) -> Tensor:
        """Token embeddings with positions: (N, W) int64 → (N, W, D).

        Args:
            ids: of the tokens.
            first: how many positions are left out behind the start token, for prompts that stand there.
        """
        positions = torch.cat(
            [self.positional_embedding[:1], self.positional_embedding[1 + first : ids.shape[1] + first]]
        )
        return self.token_embedding(ids) + positions

    def causal_mask(self, length: int, num_extra: int = 0) -> Tensor:
        """Which keys a token may attend to: those up to itself, and all of `num_extra` more but for the start token.

        Extra keys stand for prompts behind the start token, which comes before them.

        Returns:
            (length, length + num_extra) bool.
        """
        device = self.positional_embedding.device
        mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        if num_extra == 0:
            return mask
        extra = torch.ones(length, num_extra, dtype=torch.bool, device=device)
        extra[0] = False
        return torch.cat([mask, extra], dim=1)

    def project(self, tokens: Tensor, ends: Tensor) -> Tensor:
        """Embeddings of captions: ln_final and the projection of the token at the end of each; not of unit length.

        Args:
            tokens: (N, W, D).
            ends: (N,) int64.

        Returns:
            (N, E), in the precision of the weights, whatever the blocks run in.
        """
        at_end = tokens[torch.arange(len(tokens), device=tokens.device), ends]
        return (self.ln_final(at_end) @ self.text_projection).to(self.text_projection.dtype)


class WholeTextTower(nn.Module):
    """A text tower of another structure, such as those from the hub: it embeds, and nothing can stand in it.

    Attributes:
        context_length: tokens that every caption is filled up to.
    """

    def __init__(self, model: nn.Module):
        """Wrap the tower of an open_clip model, which is frozen."""
        super().__init__()
        self.text = model.text
        self.context_length = model.context_length
        self.requires_grad_(False)

    def encode(self, ids: Tensor) -> Tensor:
        """(N, context length) int64 → (N, E), not of unit length, in the precision of the weights."""
        return self.text(ids).to(next(self.text.parameters()).dtype)

    def train(self, mode: bool = True) -> "WholeTextTower":
        """It stays in eval mode: it may have dropout of its own."""
        return super().train(False)


def check_structure(text: nn.Module) -> None:
    """Refuse a text tower that is not a plain causal transformer read at the end of the text.

    Raises:
        UnsupportedCLIP: naming what differs.
    """
    transformer = getattr(text, "transformer", None)
    if not isinstance(transformer, Transformer):
        raise UnsupportedCLIP(f"the text tower is not one of open_clip's own transformers but a {type(text).__name__}")
    needed = {
        "blocks that are not plain pre-norm attention blocks": all(
            type(block) is ResidualAttentionBlock for block in transformer.resblocks
        ),
        "no causal mask": getattr(text, "attn_mask", None) is not None,
        "an embedding that is not read at the largest token": getattr(
            text, "text_pool_type", getattr(text, "pool_type", None)
        )
        == "argmax",
        "a class token": getattr(text, "cls_emb", None) is None,
        "no plain output projection": isinstance(text.text_projection, Tensor),
    }
    found = [difference for difference, as_needed in needed.items() if not as_needed]
    if found:
        raise UnsupportedCLIP(f"this CLIP's text tower differs from OpenAI's: {'; '.join(found)}")
