"""Fixtures that several tests share, and how the suite is divided over processes."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported, and inherited by the processes that tests start: a thread for each core in each of several
# processes would wait for the others' most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The programs that tests start import the same files a hundred times; compiled once, each starts half a second sooner.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from modules.clip_loader import LoadedCLIP
from preprocess.make_toy_dataset import DatasetSettings, make_dataset

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

MAX_PROCESSES = 8  # of tests, some of which hold a CLIP of full size
FEW_FILES = 4  # fewer are not worth the seconds in which another process imports torch
# those that take longest: begun last, they would be waited for
LONG_FILES = (
    "test_interruption.py",
    "test_many_processes.py",
    "test_program.py",
    "test_stop.py",
    "test_bad_videos.py",
    "test_benchmark.py",
)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Processes for `-n auto`: one a core; 0, for none but this one, where few files are asked for."""
    paths = [Path(argument.split("::")[0]) for argument in config.args]
    files = sum(len(list(path.rglob("test_*.py"))) if path.is_dir() else 1 for path in paths)
    processes = min(num_cores(), files, MAX_PROCESSES)
    return processes if processes > 1 and files >= FEW_FILES else 0


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    places = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Processes started within this are ended by Ctrl-C, as one that is started from a terminal is.

    A job that a shell without job control puts in the background ignores SIGINT, and so do all the processes that it
    starts: under `bash scripts/test.sh &` a program would not be what it is at a terminal.
    """
    # a handler does not outlive exec: the process has the signal's default
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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


def save_clip_folder(folder: Path, model: torch.nn.Module, config: dict = TINY_CONFIG) -> Path:
    """Save a model as an open_clip model folder."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> Path:
    """A folder with a few toy videos (``dataset``: 22 for training, 6 for testing) and the tiny CLIP (``clip``)."""
    root = tmp_path_factory.mktemp("tiny_run")
    make_dataset(root / "dataset", DatasetSettings(num_train=22, num_test=6, num_frames=9))
    save_clip_folder(root / "clip", make_tiny_clip().model)
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_files) -> list[str]:
    """Flags that run the retrieval program on the tiny files."""
    dataset = tiny_files / "dataset"
    return [
        *("--pretrained_clip_name", str(tiny_files / "clip"), "--features_path", str(dataset / "videos")),
        *("--train_csv", str(dataset / "train.csv"), "--val_csv", str(dataset / "test.csv")),
        *("--data_path", str(dataset / "MSRVTT_data.json"), *TINY_SIZES),
    ]


@pytest.fixture(scope="session")
def tiny_recognition(tiny_files) -> list[str]:
    """Flags that run the recognition program on the tiny files, with the two classes that they have videos of."""
    splits = tiny_files / "splits"
    splits.mkdir()
    for path in (tiny_files / "dataset" / "testTrainMulti_7030_splits").glob("moving_[lr]*.txt"):
        shutil.copy(path, splits)
    return [
        *("--pretrained_clip_name", str(tiny_files / "clip"), "--datatype", "hmdb51", "--split_dir", str(splits)),
        *("--features_path", str(tiny_files / "dataset" / "videos"), *TINY_SIZES),
    ]


TINY_SIZES = ["--max_frames", "4", "--max_words", "12", "--num_thread_reader", "0", "--precision", "fp32"]


TINY_TRAINING = [
    *("--do_train", "--epochs", "3", "--batch_size", "6", "--n_display", "1", "--num_regions", "3"),
    *("--spatial_width", "8", "--spatial_hidden", "12", "--temporal_width", "8", "--prompt_dropout", "0.2"),
]
