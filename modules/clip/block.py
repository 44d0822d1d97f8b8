"""A transformer block of CLIP, of either tower: open_clip's own layers, with places for adapters and keys beside it."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from modules.kernels.frozen import FrozenCopies

QUICK_GELU_FACTOR = 1.702


class Block(nn.Module):
    """One pre-norm block: attention, then an MLP, each adding to the tokens.

    Deep prompts, which stand beside the tokens in one block and whose outputs nobody reads, are exactly keys and values
    more: `extra`.

    Attributes:
        layer: open_clip's block; its weights are shared, not copied.
        beside_attention, between, beside_mlp: modules for adapters, None where there is none. Each gets tokens
            (G, N, D), and by name what a prompting tells them, and returns what it adds to them, of the same shape: the
            first reads the block's input and adds to what attention adds; the second reads, and adds to, the tokens
            after attention; the third reads those and adds to what the MLP adds.
        beside_projection: likewise, but for what it adds: it reads what attention reads, (G, S, D), and adds to the
            queries, keys and values of these tokens, side by side (G, S, 3·D). It is told nothing.
    """

    def __init__(self, layer: ResidualAttentionBlock):
        super().__init__()
        self.layer = layer
        self.num_heads = layer.attn.num_heads
        self.width = layer.attn.embed_dim
        self.beside_attention: nn.Module | None = None
        self.beside_projection: nn.Module | None = None
        self.between: nn.Module | None = None
        self.beside_mlp: nn.Module | None = None
        self._frozen = FrozenCopies()

    def weights(self) -> Iterator[tuple[nn.Module, str]]:
        """The four weight matrices, each as a module and the name that it has there; for parametrizations."""
        attn, mlp = self.layer.attn, self.layer.mlp
        yield attn, "in_proj_weight"
        yield attn.out_proj, "weight"
        yield mlp.c_fc, "weight"
        yield mlp.c_proj, "weight"

    def read(self, tokens: Tensor) -> Tensor:
        """Tokens as the block's attention reads them, through ln_1: (…, D) → (…, D)."""
        return self.layer.ln_1(tokens)

    def forward(
        self,
        tokens: Tensor,
        extra: Tensor | None = None,
        mask: Tensor | None = None,
        num_queries: int | None = None,
        read: Tensor | None = None,
        **for_adapters: Tensor,
    ) -> Tensor:
        """Run the block.

        Args:
            tokens: (G, N, D), the sequences.
            extra: (G, K, D), tokens that serve as keys and values only.
            mask: broadcastable to (G, heads, queries, N + K): bool, True where a key may be attended to, or a float
                that is added to the logits; None where all may be.
            num_queries: compute the output of the first so many tokens only; None for all.
            read: `read(tokens)` where somebody has it already.
            for_adapters: what the adapters need to know beside their tokens, by the names they have for it.

        Returns:
            (G, num_queries or N, D).
        """
        read = self.read(tokens) if read is None else read
        attended = self.attention_branch(read, None if extra is None else self.read(extra), mask, num_queries)
        return self.finish(tokens, attended, **for_adapters)

    def finish(self, tokens: Tensor, attended: Tensor, **for_adapters: Tensor) -> Tensor:
        """The output for the first tokens, of what attention adds to them: (G, N, D), (G, Q, D) → (G, Q, D)."""
        num_queries = attended.shape[1]
        x = tokens + attended if num_queries == tokens.shape[1] else tokens[:, :num_queries] + attended
        if self.beside_attention is not None:
            x = x + self.beside_attention(tokens, **for_adapters)[:, :num_queries]
        if self.between is not None:
            x = x + self.between(x, **for_adapters)
        out = x + self.feed_forward_branch(x)
        return out if self.beside_mlp is None else out + self.beside_mlp(x, **for_adapters)

    def attention_branch(
        self, read: Tensor, extra: Tensor | None, mask: Tensor | None, num_queries: int | None
    ) -> Tensor:
        """What attention adds to the first tokens.

        Args:
            read: (G, N, D), the tokens as the block reads them.
            extra: (G, K, D), the same of those that serve as keys and values only.
            mask: see `forward`.
            num_queries: how many are the first; None for all.

        Returns:
            (G, num_queries or N, D).
        """
        return self.attend(*self.by_heads(read, num_queries, extra), mask)

    def by_heads(
        self, read: Tensor, num_queries: int | None = None, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the first tokens, keys and values of all, so that some can be shared by several attentions.

        Args:
            read: (G, N, D), through `read`.
            num_queries: of how many tokens queries are wanted; None for all.
            extra: (G, K, D), through `read`, tokens that are keys and values only.

        Returns:
            (G, heads, num_queries or N, D / heads), (G, heads, N + K, D / heads) and the same again.
        """
        attn, width = self.layer.attn, self.width
        weight, bias = self._frozen.of(attn.in_proj_weight), self._frozen.of(attn.in_proj_bias)
        if num_queries is None:
            query, key, value = F.linear(read, weight, bias).chunk(3, dim=-1)
        else:
            query = F.linear(read[:, :num_queries], weight[:width], bias[:width])
            key, value = F.linear(read, weight[width:], bias[width:]).chunk(2, dim=-1)
        if self.beside_projection is not None:
            beside = self.beside_projection(read).chunk(3, dim=-1)
            query, key, value = query + beside[0][:, :num_queries], key + beside[1], value + beside[2]
        if extra is not None:
            more = F.linear(extra, weight[width:], bias[width:]).chunk(2, dim=-1)
            if self.beside_projection is not None:
                _, *beside = self.beside_projection(extra).chunk(3, dim=-1)
                more = [one + other for one, other in zip(more, beside, strict=True)]
            key, value = (torch.cat(pair, dim=1) for pair in zip((key, value), more, strict=True))
        query, key, value = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """What attention adds to tokens, of what `by_heads` gives, with a mask as in `forward`: (G, Q, D)."""
        if mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (G, heads, Q, D / heads)
        to_out, of = self.layer.attn.out_proj, self._frozen.of
        return self.layer.ls_1(F.linear(out.transpose(1, 2).flatten(2), of(to_out.weight), of(to_out.bias)))

    @torch.no_grad()
    def attention(
        self,
        read: Tensor,
        extra: Tensor | None = None,
        mask: Tensor | None = None,
        num_queries: int | None = None,
    ) -> Tensor:
        """How much the first tokens attend to each key, with arguments as of `attention_branch`: see `shares`."""
        query, key, _ = self.by_heads(read, num_queries, extra)
        return self.shares(query, key, mask)

    @torch.no_grad()
    def shares(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much of what `attend` adds to each token comes from each key: the mean over heads, in full precision.

        Args:
            query: (G, heads, Q, D / heads). key: (G, heads, K, D / heads).
            mask: see `forward`.

        Returns:
            (G, Q, K), not negative, each row's sum is 1.
        """
        full = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            if mask is not None and mask.dtype == torch.bool:
                mask = torch.zeros_like(mask, dtype=full).masked_fill(~mask, -torch.inf)
            mean = query.new_zeros(query.shape[0], query.shape[2], key.shape[2], dtype=full)
            # head by head: those of all heads at once would take twelve times the memory
            for of_head, keys in zip(query.to(full).unbind(1), key.to(full).unbind(1), strict=True):
                logits = of_head @ keys.mT * query.shape[-1] ** -0.5
                if mask is not None:
                    logits = logits + mask[:, 0].to(full)
                mean += logits.softmax(dim=-1)
            return mean / self.num_heads

    def feed_forward_branch(self, tokens: Tensor) -> Tensor:
        """What the MLP adds to its tokens: (…, D) → (…, D)."""
        layer, mlp = self.layer, self.layer.mlp
        if type(mlp.gelu) is not QuickGELU:
            return layer.ls_2(mlp(layer.ln_2(tokens)))
        # x·σ(1.702·x) is silu(1.702·x) / 1.702: one operation that keeps one tensor for its gradient in place of three
        # that keep two; the factors stand where the tokens are narrow
        factor, c_fc, c_proj, of = QUICK_GELU_FACTOR, mlp.c_fc, mlp.c_proj, self._frozen.of
        read = layer.ln_2(tokens)
        hidden = torch.addmm(of(c_fc.bias, factor), read.flatten(0, -2), of(c_fc.weight).t(), alpha=factor)
        added = F.linear(F.silu(hidden), of(c_proj.weight), of(c_proj.bias, factor)).mul_(1 / factor)
        return layer.ls_2(added.view(tokens.shape))

    @torch.no_grad()
    def mean_keys(self, read: Tensor) -> Tensor:
        """Tokens' keys, their mean over heads, in full precision: (…, D) as the block reads them → (…, D / heads).

        The mean is taken of the projection, which leaves a fraction of its arithmetic.
        """
        attn, keys = self.layer.attn, slice(self.width, 2 * self.width)
        with torch.autocast(read.device.type, enabled=False):
            weight = attn.in_proj_weight[keys].unflatten(0, (self.num_heads, -1)).mean(0)
            bias = attn.in_proj_bias[keys].unflatten(0, (self.num_heads, -1)).mean(0)
            read = read.to(weight.dtype)
            found = F.linear(read, weight, bias)
            if self.beside_projection is not None:
                beside = self.beside_projection(read)[..., keys]
                found = found + beside.unflatten(-1, (self.num_heads, -1)).mean(-2)
            return found

    @torch.no_grad()
    def class_attention(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Attention of the class token to each frame's patches (A_i, STOP's equation for Attn).

        The key projection is folded into the query, k·q = (W_kᵀ q)·x, which makes it one vector a head in place of a
        second projection of every patch; the key bias shifts all patches of a head alike and drops out of the softmax.

        Args:
            cls: (B, C, D) class tokens as the block reads them; C is 1, or T with one a frame.
            patches: (B, T, P, D) patch tokens as the block reads them.

        Returns:
            (B, T, P), not negative, each frame's sum is 1: softmax over the frame's patches, mean over heads.
        """
        attn = self.layer.attn
        weight, width, heads = attn.in_proj_weight, self.width, self.num_heads
        with torch.autocast(patches.device.type, enabled=False):  # regions are not chosen in low precision
            cls, patches = cls.to(weight.dtype), patches.to(weight.dtype)
            w_query, w_key = weight[: 2 * width].chunk(2)
            query = F.linear(cls, w_query, attn.in_proj_bias[:width]).unflatten(-1, (heads, -1))  # (B, C, heads, d)
            folded = torch.einsum("bchd,hdk->bchk", query, w_key.unflatten(0, (heads, -1)))  # (B, C, heads, D)
            folded = folded * (width // heads) ** -0.5
            if folded.shape[1] == 1:  # one product a video; the frames need not lie apart in memory
                logits = (patches.flatten(1, 2) @ folded[:, 0].mT).unflatten(1, patches.shape[1:3])
            else:
                logits = patches @ folded.mT  # (B, T, P, D) · (B, T, D, heads) → (B, T, P, heads)
            return logits.softmax(dim=-2).mean(dim=-1)
