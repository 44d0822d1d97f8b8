"""``--method vop``: VoP(F+C), text–video cooperative prompts (Huang et al., CVPR 2023), on a frozen CLIP.

Every layer of both towers has prompts that are replaced at the next, so that they are keys and values only. *Function*:
the first layers read each frame by itself; then a trained embedding tells frames apart and the last layers read the
video as one sequence. *Context*: of the prompts in the first layers half are made of the frames' class tokens, by a
BiLSTM over time and one linear map, which all of these layers share.

It trains 14,269,440 parameters and the frames' embedding, which the paper does not count; it states 14.12 million, and
the 1% between is not explained. What the paper leaves open [inferred]: the gradient flows through
the class tokens into the BiLSTM; the frames' embedding starts at zero; of the first layer's prompts the learned ones go
through the image tower's first norm.

The paper's twelve layers are eight and four; of a CLIP of L layers those from ⌊8·L/12⌋ on are joint. The frames'
embedding is made for T frames, and videos of another length are refused. All text prompts stand before the words: with
some behind them the public release of the basic method reads a token behind the end token, whose place it shifts by
more than the prompts shift it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from common.errors import UserError
from common.settings import at_least, setting
from modules.clip.loader import LoadedCLIP
from modules.clip.vision import ClipVisionTower
from modules.kernels.copies import send
from modules.methods.base import EncoderSettings, Method, Properties
from modules.model.deep_prompts import DeepTextPrompts, deep_prompts
from modules.model.heads import CosineHead
from modules.model.prompting import Extra, Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope, JointScope
from modules.model.text_encoder import TextEncoder
from modules.model.video_encoder import VideoEncoder
from modules.model.video_text import VideoTextModel


@dataclass(frozen=True)
class VopSettings(EncoderSettings):
    """Everything that can be set about VoP."""

    num_prompts: int = setting(8, "prompts a layer, in either tower", within=at_least(1), metavar="TOKENS")
    num_context_prompts: int = setting(
        4, "of these, in the frame layers, how many are made of the frames' class tokens", within=at_least(1)
    )
    num_joint_layers: int | None = setting(
        None,
        "last layers that read the video as one sequence, those before read it frame by frame; by default a third",
        within=at_least(0),
        metavar="LAYERS",
    )

    def problems(self) -> list[str]:
        """What does not fit together; see `common.settings.range_problems`."""
        problems = super().problems()
        if self.num_context_prompts > self.num_prompts:
            problems.append(
                f"--num_context_prompts {self.num_context_prompts} is more than --num_prompts {self.num_prompts}"
            )
        return problems


class VopVideo(VideoPrompting):
    """Learned and contextual prompts in the frame layers, learned ones in the joint layers."""

    def __init__(self, tower: ClipVisionTower, settings: VopSettings, num_frames: int):
        """tower: whose layers are prompted. num_frames: T.

        Raises:
            UserError: if the settings do not fit the tower or each other.
        """
        super().__init__()
        width, joint = tower.width, settings.num_joint_layers
        if joint is None:
            joint = tower.num_layers - 8 * tower.num_layers // 12
        if not 0 <= joint < tower.num_layers:
            raise UserError(
                f"--num_joint_layers must be below the {tower.num_layers} layers of this CLIP, found {joint}"
            )
        self.num_frame_layers = tower.num_layers - joint
        if joint and any(layer <= self.num_frame_layers for layer in settings.merge_before):
            raise UserError(
                f"--merge_frames {settings.merge_frames}: before its joint layers, which begin with layer "
                f"{self.num_frame_layers}, VoP has a position for each frame"
            )
        self.num_context = settings.num_context_prompts
        learned = settings.num_prompts - settings.num_context_prompts
        self.learned = deep_prompts(self.num_frame_layers, learned, width)
        self.joint = deep_prompts(joint, settings.num_prompts, width)
        self.positions = nn.Parameter(torch.zeros(num_frames, width))
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.to_prompts = nn.Linear(2 * width, self.num_context * width)

    def begin(self, tower: ClipVisionTower, tokens: VideoTokens) -> VideoTokens:
        """Check that the videos have the length that there are positions for."""
        length = tokens.patches.shape[1]
        if length != len(self.positions):
            raise UserError(
                f"a VoP model works at the number of frames that it was made for: expected {len(self.positions)}, "
                f"found {length}"
            )
        return tokens

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Prompt the input of a block."""
        joint_layer = layer - self.num_frame_layers
        if joint_layer < 0:
            learned = self.learned[layer] if layer > 0 else tower.ln_pre(self.learned[0])
            return Prompted(tokens, Extra.of_frames(learned, self.context(tokens.cls, tokens.lengths)))
        if joint_layer == 0:
            tokens = tokens.add_to_frames(self.positions)
        return Prompted(tokens, Extra.of_video(self.joint[joint_layer]))

    def context(self, cls: Tensor, lengths: Tensor) -> Tensor:
        """Prompts of each frame, made of all real frames' class tokens.

        Args:
            cls: (B, T, D).
            lengths: (B,) int64, how many frames are real; on the CPU, where torch wants them.

        Returns:
            (B, T, number of contextual prompts, D).
        """
        with torch.autocast(cls.device.type, enabled=False):
            cls = cls.to(self.positions.dtype)
            # sorted here: torch would wait for the device where it sorts by itself
            lengths, order = lengths.cpu().sort(descending=True)
            first, back = send(order, cls.device), send(order.argsort(), cls.device)
            packed = pack_padded_sequence(cls.index_select(0, first), lengths, batch_first=True)
            read, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=cls.shape[1])
            return self.to_prompts(read.index_select(0, back)).unflatten(-1, (self.num_context, -1))


def build(clip: LoadedCLIP, settings: VopSettings, num_frames: int, max_words: int) -> VideoTextModel:
    """VoP around a frozen CLIP."""
    vision, text = clip.vision_tower(), clip.text_tower()
    prompting = VopVideo(vision, settings, num_frames)
    scopes = [FrameScope()] * prompting.num_frame_layers + [JointScope()] * len(prompting.joint)
    return VideoTextModel(
        TextEncoder(text, clip.tokenizer, max_words, DeepTextPrompts(text, settings.num_prompts, take_positions=True)),
        VideoEncoder(vision, scopes, Mean(), prompting, settings.merge_before),
        CosineHead(clip.logit_scale),
    )


METHOD = Method(
    "deep prompts in both towers, contextual over frames and joint in the last layers (CVPR 2023)",
    VopSettings,
    build,
    trains=True,
    properties=Properties(still=False, any_length=False, order_blind=False),
    recipe={"batch_size": 32, "max_words": 69},  # of the 77 positions the prompts take 8
)
