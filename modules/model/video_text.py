"""A model of videos and texts: what every method builds and what the trainer trains."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from common.errors import UserError


class VideoTextModel(nn.Module):
    """A text encoder and a video encoder with a common space.

    Similarity is the cosine times CLIP's own exp(logit_scale). What trains is what requires a gradient; a method
    decides that when it builds the encoders.
    """

    def __init__(self, text_encoder: nn.Module, video_encoder: nn.Module, logit_scale: float):
        """Compose.

        Args:
            text_encoder: N captions and their dropout keys (N,) or None → (N, E), unit length.
            video_encoder: see `VideoEncoder.forward`.
            logit_scale: the factor itself (100 in OpenAI's CLIP), not its logarithm.
        """
        super().__init__()
        self.text_encoder = text_encoder
        self.video_encoder = video_encoder
        self.register_buffer("logit_scale", torch.tensor(float(logit_scale)), persistent=False)
        self.buffers_of_clip: frozenset[str] = frozenset()

    def encode_text(self, captions: Sequence[str], sample_keys: Tensor | None = None) -> Tensor:
        """N captions → (N, E), unit length; `sample_keys` (N,) as for videos."""
        return self.text_encoder(captions, sample_keys)

    def encode_video(
        self,
        frames: Tensor,
        num_frames: Tensor,
        sample_keys: Tensor | None = None,
        return_details: bool = False,
    ) -> dict:
        """Videos (B, T, 3, H, W) uint8 → a dictionary with ``embedding`` (B, E); see `VideoEncoder.forward`."""
        return self.video_encoder(frames, num_frames, sample_keys, return_details)

    def similarity(self, text: Tensor, video: Tensor) -> Tensor:
        """Scaled cosine similarity of unit-length embeddings: (N, E), (M, E) → (N, M)."""
        return self.logit_scale * text @ video.T

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of all that trains."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def rate_factor(self, name: str) -> float:
        """Factor of a parameter's learning rate; a method that also tunes CLIP makes it smaller there."""
        return 1.0

    def num_trainable(self) -> int:
        """How many numbers train."""
        return sum(p.numel() for _, p in self.trainable_parameters())

    def note_buffers_of_clip(self, clip_model: nn.Module) -> None:
        """Take what CLIP's own buffers hold for no part of the training; before the model is moved anywhere."""
        of_clip = {id(buffer) for buffer in clip_model.buffers()}
        self.buffers_of_clip = frozenset(name for name, buffer in self.named_buffers() if id(buffer) in of_clip)

    def trained_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Names and persistent buffers of what the method added to CLIP, such as the statistics of a BatchNorm."""
        persistent = self.state_dict(keep_vars=True).keys() - self.buffers_of_clip
        return ((name, buffer) for name, buffer in self.named_buffers() if name in persistent)

    def trained_state(self) -> dict[str, Tensor]:
        """The values of all that a training changes, parameters and buffers, on the CPU: what a checkpoint holds."""
        own = [*self.trainable_parameters(), *self.trained_buffers()]
        return {name: tensor.detach().cpu().clone() for name, tensor in own}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Set all that a training changes.

        Raises:
            UserError: naming tensors that are missing, unknown or of another shape, expected and found.
        """
        own: dict[str, Tensor] = dict([*self.trainable_parameters(), *self.trained_buffers()])
        problems = [f"{name}: missing" for name in own.keys() - state.keys()]
        problems += [f"{name}: not part of this model" for name in state.keys() - own.keys()]
        problems += [
            f"{name}: expected {tuple(own[name].shape)}, found {tuple(state[name].shape)}"
            for name in own.keys() & state.keys()
            if own[name].shape != state[name].shape
        ]
        if problems:
            listed = "\n  ".join(sorted(problems)[:10])
            raise UserError(
                f"the checkpoint does not fit the model ({len(problems)} tensors differ); was it trained with other "
                f"settings?\n  {listed}"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
