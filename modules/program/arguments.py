"""The command line of the main programs: which flags there are, and what they say."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.settings import (
    above,
    add_arguments,
    at_least,
    former_settings,
    from_arguments,
    model_settings,
    range_problems,
    setting,
)
from dataloaders.datasets.recognition.splits import RecognitionDataset
from dataloaders.datasets.retrieval.lists import RetrievalDataset
from dataloaders.items import FRAME_ORDERS, VideoSettings, longest_read
from dataloaders.video.reader import DecodingSettings
from modules.methods import DEFAULT_METHOD, METHODS
from modules.program.build import find_checkpoint
from modules.runtime.run_folder import BEST, load_checkpoint
from modules.training.trainer import TrainSettings

STEP_LIMIT = 600.0  # seconds that may pass until a process comes to the next step but for reading: it may compile
USAGE = "%(prog)s [flags]"  # all of them would fill a screen, before every message about one


@dataclass(frozen=True)
class CommonSettings:
    """Flags of every program."""

    do_train: bool = setting(False, "train, evaluating after each epoch", affects_results=False)
    do_eval: bool = setting(
        False, "evaluate only; with --init_model, as its checkpoint was trained", affects_results=False
    )
    output_dir: Path = setting(
        Path("runs/default"), "what the run leaves goes here", affects_results=False, metavar="FOLDER"
    )
    init_model: Path | None = setting(
        None,
        "checkpoint (best.pt) to evaluate, or to start training from",
        affects_results=False,
        metavar="FILE",
    )
    pretrained_clip_name: str = setting(
        "ViT-B/32", "OpenAI's name, an open_clip name, or a path", affects_results=False, metavar="NAME"
    )
    pretrained_dir: Path | None = setting(
        None, "folder with OpenAI's weight files (ViT-B-32.pt)", affects_results=False, metavar="FOLDER"
    )
    trust_weights: bool = setting(
        False, "accept an OpenAI-form file whose checksum is not a published one", affects_results=False
    )
    max_frames: int = setting(12, "T, frames a video", within=at_least(1), metavar="FRAMES")
    max_words: int = setting(
        32, "tokens a caption, start and end included; up to CLIP's context", within=at_least(3), metavar="TOKENS"
    )
    batch_size_val: int = setting(
        32, "videos encoded at a time in evaluation", affects_results=False, within=at_least(1), metavar="VIDEOS"
    )
    allow_missing: Path | bool = setting(
        False,
        "leave training videos without a file out, and list them, instead of stopping; with a list of them, such as "
        "preprocess/check_videos.py writes, exactly its videos may be missing, also in evaluation",
        affects_results=False,
        metavar="FILE",
        alone=True,
    )
    on_bad_eval_video: str = setting(
        "error",
        "an evaluation video that is missing or cannot be decoded: stop, or leave it out, which changes the metric; "
        "with a list for --allow_missing, what may be missing is what it names, here too",
        ("error", "drop"),
        affects_results=False,
    )
    video_time_limit: float = setting(
        60.0, "that decoding a video may take", affects_results=False, within=above(0, 86_400), metavar="SECONDS"
    )
    decoder_errors: str = setting(
        "reject",
        "a video where the decoder reports errors but returns patched-up frames: a bad video, or as good as any",
        ("reject", "ignore"),
    )
    compile: bool = setting(
        False, "torch.compile the video encoder: for GPUs; the first steps wait for minutes, also on a CPU"
    )
    deterministic: bool = setting(False, "the same bits in every run on the same machine; slower")
    eval_frame_order: str = setting(
        "ordered", "order of a video's frames in evaluation; shuffle shows whether a model reads time", FRAME_ORDERS
    )


@dataclass(frozen=True)
class Arguments:
    """A parsed command line.

    Attributes:
        method, datatype: the names chosen.
        common, train, task, method_settings, data: a settings object each.
    """

    method: str
    datatype: str
    common: CommonSettings
    train: TrainSettings
    task: Any
    method_settings: Any
    data: Any

    @property
    def parts(self) -> tuple[Any, ...]:
        """All settings objects."""
        return self.common, self.train, self.task, self.method_settings, self.data

    @property
    def patience(self) -> float:
        """Seconds that a process waits for another: what reading a sample may take, and a step beside that."""
        return STEP_LIMIT + longest_read(self.common.video_time_limit)


def parse_arguments(
    argv: Sequence[str] | None,
    description: str,
    datasets: Mapping[str, RetrievalDataset | RecognitionDataset],
    task_settings: type,
) -> Arguments:
    """Parse a command line whose flags depend on the method and the dataset chosen.

    A flag that is not given has the dataset's own default, else the method's, else the program's. An evaluation of a
    checkpoint takes method, method settings, frames and words from there.

    Raises:
        SystemExit: from argparse, for ``--help`` and for flags that are unknown or malformed.
        UserError: naming every flag that is out of its range, or that the checkpoint to evaluate was not trained with.
    """
    chooser = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    chooser.add_argument(
        "--method",
        choices=list(METHODS),
        default=argparse.SUPPRESS,
        help="; ".join(f"{name}: {m.summary}" for name, m in METHODS.items()) + f" (default: {DEFAULT_METHOD})",
    )
    first = next(iter(datasets))
    chooser.add_argument("--datatype", choices=list(datasets), default=first, help=f"the dataset (default: {first})")
    chosen, _ = chooser.parse_known_args(argv)
    checkpoint = _checkpoint_to_evaluate(argv)
    trained = {} if checkpoint is None else load_checkpoint(checkpoint)["identity"]
    method = getattr(chosen, "method", trained.get("method", DEFAULT_METHOD))
    if method not in METHODS:
        raise UserError(f"{checkpoint} was trained with --method {method}, which is none of {', '.join(METHODS)}")

    parser = argparse.ArgumentParser(
        usage=USAGE,
        description=description,
        parents=[chooser],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    method_settings = METHODS[method].settings
    trained = former_settings(method_settings) | trained if trained else {}
    recipe = recipe_of(method, datasets[chosen.datatype])
    groups = {
        "program": CommonSettings,
        "training": TrainSettings,
        "task": task_settings,
        f"method {method}": method_settings,
        f"dataset {chosen.datatype}": datasets[chosen.datatype].settings,
    }
    for title, settings in groups.items():
        add_arguments(parser, settings, title, recipe)
    args = parser.parse_args(argv)
    if trained:
        _check_as_trained(method, from_arguments(method_settings, args), frozenset(vars(args)), trained, checkpoint)
    taken = {field.name for field in dataclasses.fields(method_settings)} | {"max_frames", "max_words"}
    defaults = recipe | {name: value for name, value in trained.items() if name in taken}
    parts = [from_arguments(settings, args, defaults) for settings in groups.values()]
    if problems := range_problems(*parts):
        raise UserError("\n".join(problems))
    return Arguments(method, chosen.datatype, *parts)


def recipe_of(method: str, dataset: RetrievalDataset | RecognitionDataset | None = None) -> dict[str, Any]:
    """The defaults of flags that a method and a dataset bring; the dataset's count where both have one."""
    return {**METHODS[method].recipe, **({} if dataset is None else dataset.recipe)}


def _checkpoint_to_evaluate(argv: Sequence[str] | None) -> Path | None:
    """The checkpoint that a command line evaluates: ``--init_model``, or in its folder the first of several splits'."""
    parser = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--init_model", type=Path)
    for flag in ("--do_train", "--do_eval"):
        parser.add_argument(flag, action="store_true")
    found, _ = parser.parse_known_args(argv)
    if found.do_train or not found.do_eval or found.init_model is None:
        return None
    if splits := sorted(found.init_model.glob(f"split*/{BEST}")):
        return splits[0]
    return find_checkpoint(found.init_model)


def _check_as_trained(
    method: str, settings: Any, given: frozenset[str], trained: Mapping[str, Any], checkpoint: Path
) -> None:
    """Refuse flags of the method that a checkpoint was not trained with.

    Raises:
        UserError: with both values of each.
    """
    now = {"method": method} | model_settings(settings)
    if differences := [
        f"--{name} {value}, trained with {trained[name]}"
        for name, value in now.items()
        if name in given and name in trained and value != trained[name]
    ]:
        listed = "\n  ".join(differences)
        raise UserError(
            f"{checkpoint} holds another model; leave these flags out, they are taken from there:\n  {listed}"
        )


def video_settings(arguments: Arguments, image_size: int, horizontal_flip: bool = False) -> VideoSettings:
    """How videos are read, from the flags that every program has."""
    common = arguments.common
    return VideoSettings(
        common.max_frames,
        image_size,
        arguments.train.seed,
        horizontal_flip,
        DecodingSettings(video_time_limit=common.video_time_limit, decoder_errors=common.decoder_errors),
        arguments.data.pack,
    )
