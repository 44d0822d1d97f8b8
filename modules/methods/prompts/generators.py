"""What makes the prompts of both towers for DGL and UPT, and the promptings that put them there.

The prompts depend on no input: they are made once for a batch, of all layers together and without its axis. Those of a
frame stand beside its tokens and are replaced at every layer, so that they are keys and values only; those of the text
tower, too. Of these some stand behind the start token. The others stand before the end token, which alone sees them: in
the reference they stand behind it, where the causal mask keeps them from whatever is read, so that half of what makes
them only decays. Neither has a position.

Where the text tower has another number of layers than the image tower, its layer i takes the prompts of ⌊i·L / its
number of layers⌋.
"""

from dataclasses import dataclass

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn

from common.settings import at_least, setting
from modules.clip.block import Block
from modules.clip.text import ClipTextTower
from modules.clip.vision import ClipVisionTower
from modules.methods.base import EncoderSettings
from modules.methods.prompts.lengths import check_length
from modules.methods.prompts.vpt import uniform_prompts
from modules.model.prompting import Extra, Prompted, TextPrompting, TextTokens, VideoPrompting, VideoTokens


@dataclass(frozen=True)
class FramePromptSettings(EncoderSettings):
    """What can be set about prompts of each frame, and of the text, that one transformer makes."""

    num_prompts: int = setting(4, "prompts of each frame in each layer", within=at_least(1), metavar="TOKENS")
    prefix_prompts: int = setting(
        4, "prompts of each layer of the text tower before the words", within=at_least(1), metavar="TOKENS"
    )
    postfix_prompts: int = setting(
        4, "the same between the words and the end, which alone sees them", within=at_least(0), metavar="TOKENS"
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.merge_frames:
            problems.append(f"--merge_frames {self.merge_frames}: this method has prompts for each frame in all layers")
        return problems


class PromptGenerator(nn.Module):
    """Makes the prompts of both towers.

    Attributes:
        num_frames: T where each frame has its own prompts; None where all have the same.
        num_postfix: how many of a caption's prompts, the last ones, stand before its end.
        text_layers: of which layers of the image tower the text tower's prompts are.
    """

    num_frames: int | None = None

    def __init__(self, vision: ClipVisionTower, text: ClipTextTower, num_postfix: int):
        super().__init__()
        self.num_postfix = num_postfix
        # a tensor on the device: for a list the device would be waited for
        layers = [layer * vision.num_layers // text.num_layers for layer in range(text.num_layers)]
        self.register_buffer("text_layers", torch.tensor(layers), persistent=False)

    def video(self) -> Tensor:
        """Each layer's prompts of each frame: (L, T, K, D), or (L, 1, K, D) where all frames have the same."""
        raise NotImplementedError

    def text(self) -> Tensor:
        """Each layer's prompts of the text tower, prefix and postfix: (its layers, K′, its width)."""
        raise NotImplementedError


class LinearGenerator(PromptGenerator):
    """Learned prompts of the image tower, the same for every frame; the text tower's are two linear maps of them."""

    def __init__(self, vision: ClipVisionTower, text: ClipTextTower, num_prompts: int):
        """num_prompts: K, of a frame, and of the text on either side of the words."""
        super().__init__(vision, text, num_postfix=num_prompts)
        self.learned = uniform_prompts(vision, vision.num_layers, num_prompts, vision.width)
        self.to_prefix = nn.Linear(vision.width, text.width)
        self.to_postfix = nn.Linear(vision.width, text.width)

    def video(self) -> Tensor:
        """See `PromptGenerator`."""
        return self.learned[:, None]

    def text(self) -> Tensor:
        """See `PromptGenerator`."""
        learned = self.learned.index_select(0, self.text_layers)
        return torch.cat([self.to_prefix(learned), self.to_postfix(learned)], dim=1)


class TransformerGenerator(PromptGenerator):
    """A table of prompts of both towers, of which one transformer block reads each layer's; an MLP for the text's.

    A layer's rows are the text's, prefix first, and then each frame's in turn, so that the table is tied to T.
    """

    def __init__(self, vision: ClipVisionTower, text: ClipTextTower, settings: FramePromptSettings, num_frames: int):
        """num_frames: T."""
        super().__init__(vision, text, settings.postfix_prompts)
        width = vision.width
        self.num_frames = num_frames
        self.num_text = settings.prefix_prompts + settings.postfix_prompts
        rows = self.num_text + num_frames * settings.num_prompts
        self.table = nn.Parameter(torch.randn(vision.num_layers, rows, width))
        self.block = Block(ResidualAttentionBlock(width, vision.blocks[0].num_heads, act_layer=QuickGELU))
        self.to_text = nn.Sequential(nn.Linear(width, 2 * width), QuickGELU(), nn.Linear(2 * width, text.width))

    def video(self) -> Tensor:
        """See `PromptGenerator`."""
        return self.block(self.table)[:, self.num_text :].unflatten(1, (self.num_frames, -1))  # (L, T·K, D) → (…)

    def text(self) -> Tensor:
        """See `PromptGenerator`."""
        return self.to_text(self.block(self.table.index_select(0, self.text_layers), num_queries=self.num_text))


@dataclass(frozen=True)
class TokensWithPrompts(VideoTokens):
    """A batch's tokens and the prompts of all layers, made at once before the first.

    Attributes:
        prompts: for each layer what `Extra.of_frames` takes.
    """

    prompts: Tensor | None = None


class GeneratedVideoPrompts(VideoPrompting):
    """Puts a generator's prompts beside each frame's tokens."""

    def __init__(self, generator: PromptGenerator, method: str):
        """method: its name, for messages."""
        super().__init__()
        self.generator = generator
        self.method = method

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> TokensWithPrompts:
        """Make the prompts.

        Raises:
            UserError: if there are not as many frames as there are prompts for.
        """
        if self.generator.num_frames is not None:
            check_length(self.method, self.generator.num_frames, tokens.patches.shape[1])
        return TokensWithPrompts(**vars(tokens), prompts=self.generator.video())

    def before(self, tower: ClipVisionTower, layer: int, tokens: TokensWithPrompts, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        return Prompted(tokens, Extra.of_frames(tokens.prompts[layer]))


@dataclass(frozen=True)
class TextWithPrompts(TextTokens):
    """Captions and the prompts of all layers, made at once before the first: (layers, K, D)."""

    prompts: Tensor | None = None


class GeneratedTextPrompts(TextPrompting):
    """Puts a generator's prompts among each caption's words."""

    def __init__(self, generator: PromptGenerator):
        super().__init__()
        self.generator = generator

    def begin(self, tower: ClipTextTower, ids: Tensor) -> TextWithPrompts:
        """Embed captions and make the prompts, the last of which no token before a caption's end sees."""
        prompts, ends = self.generator.text(), tower.ends(ids)
        at = torch.arange(ids.shape[1], device=ids.device)[:, None]
        is_postfix = torch.arange(prompts.shape[1], device=ids.device) >= prompts.shape[1] - self.generator.num_postfix
        seen_from = torch.where(is_postfix, ends[:, None, None], 1)  # (N, 1, K)
        return TextWithPrompts(tower.embed(ids), ends, at >= seen_from, prompts)

    def before(self, tower: ClipTextTower, layer: int, text: TextWithPrompts, keys: Tensor | None) -> Tensor:
        """The prompts of a block: (K, D)."""
        return text.prompts[layer]
