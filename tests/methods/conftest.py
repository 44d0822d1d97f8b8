"""What the tests of methods share."""

import open_clip
import pytest

from modules.clip.loader import LoadedCLIP


@pytest.fixture(scope="session")
def vit_b_32() -> LoadedCLIP:
    """A random CLIP of the size of OpenAI's ViT-B/32."""
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return LoadedCLIP(model, tokenizer, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
