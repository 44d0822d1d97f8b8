"""Inputs so small that a run on them takes a second: a random CLIP, a few toy videos, and the flags of the programs."""

import json
import shutil
from functools import cache
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from modules.clip.loader import LoadedCLIP
from preprocess.make_toy_dataset import DatasetSettings, make_dataset

TINY_CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TINY_SIZES = ["--max_frames", "4", "--max_words", "12", "--num_thread_reader", "0", "--precision", "fp32"]
TINY_TRAINING = [
    *("--do_train", "--epochs", "3", "--batch_size", "6", "--n_display", "1", "--num_regions", "3"),
    *("--spatial_width", "8", "--spatial_hidden", "12", "--temporal_width", "8", "--prompt_dropout", "0.2"),
]


@cache
def openais_tokenizer() -> open_clip.SimpleTokenizer:
    """CLIP's own, whose vocabulary takes a quarter of a second to read."""
    return open_clip.get_tokenizer("ViT-B-32")


def make_tiny_clip(seed: int = 0) -> LoadedCLIP:
    """A random CLIP of a few thousand image parameters: 3×3 patches, D = 32, 3 layers."""
    torch.manual_seed(seed)
    model = open_clip.CLIP(**TINY_CONFIG).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # zero at the start, which would hide a forgotten one
            torch.nn.init.normal_(parameter, std=0.1)
    return LoadedCLIP(model, openais_tokenizer(), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def make_clip_without_values() -> LoadedCLIP:
    """A CLIP of the size of OpenAI's ViT-B/32 that takes no memory."""
    with torch.device("meta"):
        model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False, device="meta")
    model.logit_scale = torch.nn.Parameter(torch.tensor(4.6))  # whose value methods ask for
    model.eval().requires_grad_(False)
    return LoadedCLIP(model, openais_tokenizer(), open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def save_clip_folder(folder: Path, model: torch.nn.Module, config: dict = TINY_CONFIG) -> Path:
    """Save a model as an open_clip model folder."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    return folder


def random_videos(batch: int, length: int, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Videos in which everything changes: (batch, length, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, length, 3, size, size), dtype=torch.uint8, generator=generator)


def make_tiny_files(root: Path) -> Path:
    """Write a few toy videos (``dataset``: 22 for training, 6 for testing) and the tiny CLIP (``clip``) to a folder."""
    make_dataset(root / "dataset", DatasetSettings(num_train=22, num_test=6, num_test_sets=1, num_frames=9))
    save_clip_folder(root / "clip", make_tiny_clip().model)
    return root


def retrieval_flags(tiny_files: Path) -> list[str]:
    """Flags that run the retrieval program on the files of `make_tiny_files`."""
    dataset = tiny_files / "dataset"
    return [
        *("--pretrained_clip_name", str(tiny_files / "clip"), "--features_path", str(dataset / "videos")),
        *("--train_csv", str(dataset / "train.csv"), "--val_csv", str(dataset / "test.csv")),
        *("--data_path", str(dataset / "MSRVTT_data.json"), *TINY_SIZES),
    ]


def recognition_flags(tiny_files: Path) -> list[str]:
    """Flags that run the recognition program on the files of `make_tiny_files`.

    The classes are the two that they have videos of, listed in ``splits``, which is made.
    """
    splits = tiny_files / "splits"
    splits.mkdir()
    for path in (tiny_files / "dataset" / "testTrainMulti_7030_splits").glob("moving_[lr]*.txt"):
        shutil.copy(path, splits)
    return [
        *("--pretrained_clip_name", str(tiny_files / "clip"), "--datatype", "hmdb51", "--split_dir", str(splits)),
        *("--features_path", str(tiny_files / "dataset" / "videos"), *TINY_SIZES),
    ]
