"""A model of videos and texts: what every method builds and what the trainer trains."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from modules.errors import UserError


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

    def trainable_state(self) -> dict[str, Tensor]:
        """The values of all that trains, on the CPU: what a checkpoint holds of the model."""
        return {name: p.detach().cpu().clone() for name, p in self.trainable_parameters()}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Set all that trains.

        Raises:
            UserError: naming tensors that are missing, unknown or of another shape, expected and found.
        """
        own = dict(self.trainable_parameters())
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
            for name, parameter in own.items():
                parameter.copy_(state[name])
