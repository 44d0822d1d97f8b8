"""Fixtures that several tests share."""

from pathlib import Path

import open_clip
import pytest
import torch

from modules.clip_loader import LoadedCLIP

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TINY_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def make_tiny_clip(seed: int = 0) -> LoadedCLIP:
    """A random CLIP of a few thousand image parameters: 3×3 patches, D = 32, 3 layers."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**TINY_CONFIG).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start, which would hide a forgotten one
            torch.nn.init.normal_(parameter, std=0.1)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return LoadedCLIP(model, tokenizer, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


@pytest.fixture(scope="session")
def tiny_clip() -> LoadedCLIP:
    """A tiny random CLIP; frozen, so tests may share it."""
    return make_tiny_clip()


def random_videos(batch: int, length: int, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Videos in which everything changes: (batch, length, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length, 3, size, size), dtype=torch.uint8, generator=generator)


def shared_data(name: str) -> Path:
    """A folder of real inputs; skips the test, saying so, where it is not there."""
    folder = SHARED_DATA / name
    if not folder.exists():
        pytest.skip(f"the real inputs are not here: {folder} is missing")
    return folder
