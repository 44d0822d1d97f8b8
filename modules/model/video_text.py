"""A model of videos and texts: what every method builds and what the trainer trains."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from modules.model.heads import Head


class Trained(NamedTuple):
    """How a parameter trains.

    Attributes:
        parameter: which.
        rate: factor of the learning rate.
        decays: whether weight decay acts on it.
    """

    parameter: nn.Parameter
    rate: float
    decays: bool


class VideoTextModel(nn.Module):
    """A text encoder and a video encoder, and a head that compares what they make.

    What trains is what requires a gradient; a method decides that when it builds the parts.
    """

    def __init__(
        self,
        text_encoder: nn.Module,
        video_encoder: nn.Module,
        head: Head,
        rates: Sequence[tuple[nn.Module, float]] = (),
    ):
        """Compose.

        Args:
            text_encoder: N captions and their dropout keys (N,) or None → (N, E).
            video_encoder: see `VideoEncoder.forward`.
            head: their similarities.
            rates: modules whose parameters train at the learning rate times a factor, for example parts of CLIP that
                are tuned beside new modules; the factor of all others is 1, of those in several the last one's.
        """
        super().__init__()
        self.text_encoder = text_encoder
        self.video_encoder = video_encoder
        self.head = head
        self.rates = list(rates)
        self.buffers_of_clip: frozenset[str] = frozenset()

    def encode_text(self, captions: Sequence[str], sample_keys: Tensor | None = None) -> Tensor:
        """N captions → (N, E), unit length if the head is a product; `sample_keys` (N,) as for videos."""
        return self.text_encoder(captions, sample_keys)

    def encode_video(
        self,
        frames: Tensor,
        num_frames: Tensor,
        sample_keys: Tensor | None = None,
        return_details: bool = False,
        **more: bool,
    ) -> dict:
        """Videos (B, T, 3, H, W) uint8 → a dictionary with ``embedding`` (B, …) and, of an encoder that has
        them, ``measures``; see `VideoEncoder.forward`, also for what `more` there is to ask for.
        """
        return self.video_encoder(frames, num_frames, sample_keys, return_details, **more)

    def similarity(self, text: Tensor, video: Tensor, keys: Tensor | None = None) -> Tensor:
        """Similarities, as logits, of embeddings: (N, …), (M, …) → (N, M); see `Head`."""
        return self.head(text, video, keys)

    def mean_text(self, embeddings: Tensor) -> Tensor:
        """One embedding of several that mean the same: (C, n, E) → (C, E), made unit length if the head needs it."""
        mean = embeddings.mean(1)
        return F.normalize(mean, dim=-1) if self.head.is_product else mean

    def trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of all that trains."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def how_parameters_train(self) -> Iterator[Trained]:
        """The parameters that train, each with its rate and decay.

        Biases and the weights of normalisations, which are those of one dimension, do not decay, nor does what a module
        names in an attribute ``undecayed``, a set of names of its own parameters.
        """
        factors = {id(parameter): factor for module, factor in self.rates for parameter in module.parameters()}
        undecayed = {
            id(parameter)
            for module in self.modules()
            for name, parameter in module.named_parameters(recurse=False)
            if name in getattr(module, "undecayed", ())
        }
        for _, parameter in self.trainable_parameters():
            decays = parameter.ndim > 1 and id(parameter) not in undecayed
            yield Trained(parameter, factors.get(id(parameter), 1.0), decays)

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
