"""What the entry scripts share: flags, processes, CLIP, the method's model, training, evaluation, results."""

import argparse
import contextlib
import dataclasses
import hashlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from common.errors import UserError
from common.settings import (
    above,
    add_arguments,
    all_settings,
    at_least,
    from_arguments,
    model_settings,
    range_problems,
    result_settings,
    setting,
)
from dataloaders.batches import check_batch_size
from dataloaders.datasets.recognition.splits import RecognitionDataset
from dataloaders.datasets.retrieval.lists import RetrievalDataset
from dataloaders.items import FRAME_ORDERS, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.pack_index import PackIndex
from dataloaders.video.reader import DecodingSettings
from modules.clip.loader import LoadedCLIP, known_context_length, load_clip
from modules.methods import DEFAULT_METHOD, METHODS
from modules.methods.base import Method
from modules.model.text_encoder import check_max_words
from modules.model.video_text import VideoTextModel
from modules.runtime.interruption import EXIT_CODE as INTERRUPTED_EXIT_CODE
from modules.runtime.interruption import Interrupted, Interruption, end_children
from modules.runtime.precision import Precision, choose_precision
from modules.runtime.processes import Processes, start_processes, stop_processes
from modules.runtime.run_folder import (
    BEST,
    DROPPED,
    INTERRUPTED,
    LAST,
    MISSING,
    RESULTS,
    RunFolder,
    file_logger,
    load_checkpoint,
)
from modules.tasks.metrics import rounded
from modules.training.trainer import Task, Trainer, TrainSettings, list_differences, peak_memory_mb

logger = logging.getLogger("stop")

T = TypeVar("T")

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
    allow_missing: bool = setting(
        False, "leave training videos without a file out, and list them, instead of stopping", affects_results=False
    )
    on_bad_eval_video: str = setting(
        "error",
        "an evaluation video that is missing or cannot be decoded: stop, or leave it out, which changes the metric",
        ("error", "drop"),
        affects_results=False,
    )
    video_time_limit: float = setting(
        60.0, "that decoding a video may take", affects_results=False, within=above(0), metavar="SECONDS"
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


class ReportingTask(Task, Protocol):
    """What a program asks of a task beyond what the trainer does.

    Attributes:
        files: small text files that belong to the run from its start, by name.
        missing: (list, video id) of each video that is left out because it has no file.
        identity: what results depend on and the settings do not show, by name.
        counts: ``texts`` and ``videos``, how many of each the metrics are of.
        captions: the texts of each list, by what they are called in a sentence.
    """

    files: Mapping[str, str]
    missing: Sequence[tuple[str, str]]
    identity: Mapping[str, Any]
    captions: Mapping[str, Sequence[str]]

    @property
    def counts(self) -> dict[str, int]: ...

    def report(
        self, model: VideoTextModel, processes: Processes, precision: Precision, folder: RunFolder
    ) -> dict[str, float]:
        """Evaluate the chosen checkpoint and write the files that the task leaves; metrics, the same on every rank."""


def parse_arguments(
    argv: Sequence[str] | None,
    description: str,
    datasets: Mapping[str, RetrievalDataset | RecognitionDataset],
    task_settings: type,
) -> Arguments:
    """Parse a command line whose flags depend on the method and the dataset chosen.

    An evaluation of a checkpoint takes method, method settings, frames and words from there where they are not given.

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
    groups = {
        "program": CommonSettings,
        "training": TrainSettings,
        "task": task_settings,
        f"method {method}": method_settings,
        f"dataset {chosen.datatype}": datasets[chosen.datatype].settings,
    }
    for title, settings in groups.items():
        add_arguments(parser, settings, title)
    args = parser.parse_args(argv)
    if trained:
        _check_as_trained(method, from_arguments(method_settings, args), frozenset(vars(args)), trained, checkpoint)
    taken = {field.name for field in dataclasses.fields(method_settings)} | {"max_frames", "max_words"}
    defaults = {name: value for name, value in trained.items() if name in taken}
    parts = [from_arguments(settings, args, defaults) for settings in groups.values()]
    if problems := range_problems(*parts):
        raise UserError("\n".join(problems))
    return Arguments(method, chosen.datatype, *parts)


def _checkpoint_to_evaluate(argv: Sequence[str] | None) -> Path | None:
    """The checkpoint that a command line evaluates: ``--init_model``, or in its folder the first of several splits'."""
    parser = argparse.ArgumentParser(usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--init_model", type=Path)
    for flag in ("--do_train", "--do_eval"):
        parser.add_argument(flag, action="store_true")
    found, _ = parser.parse_known_args(argv)
    if found.do_train or not found.do_eval or found.init_model is None:
        return None
    if found.init_model.is_dir():
        return next(iter(sorted(found.init_model.glob(f"split*/{BEST}"))), None)
    return found.init_model


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


def run_program(parse: Callable[[], T], run: Callable[[T, Processes, Interruption], Any]) -> int:
    """Run something on the processes there are, and say what went wrong if the user can mend it.

    Args:
        parse: reads the command line.
        run: does what it says.

    Returns:
        The exit status: 0; 1 after an error that the user can mend, which has been printed; or
        `modules.runtime.interruption.EXIT_CODE` after SIGTERM or SIGINT, when the same command continues.
    """
    processes = None
    with Interruption() as interruption:
        try:
            with _first_alone_prints():
                try:
                    arguments = parse()
                except UserError as error:
                    print(error, file=sys.stderr)  # there is no log yet
                    return 1
            processes = start_processes()
            run(arguments, processes, interruption)
            stop_processes()
            return 0
        except SystemExit:  # of argparse, which has said why
            raise
        except BaseException as error:
            interruption.start_leaving()
            status = _exit_status(error, processes, interruption)
        # the loaders that the error held are closed by now; a worker in the middle of a video has not noticed
        end_children()
        return status


@contextlib.contextmanager
def _first_alone_prints() -> Iterator[None]:
    """Around what all processes of a machine do alike, such as reading the command line: the first shows its output."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        yield


def _exit_status(error: BaseException, processes: Processes | None, interruption: Interruption) -> int:
    """Say what ended a run; raises it again if it is nothing that the user can mend."""
    if isinstance(error, UserError | BadVideoError | FloatingPointError):
        _say(str(error), processes)
        return 1
    if processes is not None and isinstance(error, Exception | Interrupted) and processes.others_failed(error):
        # the launcher told this one to stop, or what they share is broken
        text = f"process {processes.rank}: stopped, since {processes.what_failed()}"
        # the launcher has the last word on the screen, and knows better than this one
        (file_logger if processes.launched else logger).error("%s", text)
        if isinstance(error, Exception):
            file_logger.error("process %d met this:\n%s", processes.rank, _trace(error))
        return 1
    if isinstance(error, Interrupted):
        interruption.finish()
        return INTERRUPTED_EXIT_CODE
    if processes is None or processes.world_size == 1:
        file_logger.error("ended by an error of the program itself\n%s", _trace(error))
    else:
        processes.report_failure()
        text = f"process {processes.rank} of {processes.world_size}:\n{_trace(error)}"
        file_logger.error("%s", text)
        if not processes.is_first_to_say(_trace(error)) or processes.leave_last_word(text):
            return 1
    end_children()
    raise error


def _trace(error: BaseException) -> str:
    """An error's traceback."""
    return "".join(traceback.format_exception(error))


def _say(message: str, processes: Processes | None) -> None:
    """Show an error, once where all processes have met the same; ``log.txt`` has it of each."""
    if processes is None or processes.world_size == 1:
        logger.error("%s", message)
        return
    processes.report_failure()
    text = f"process {processes.rank} of {processes.world_size}: {message}"
    shown = not processes.is_first_to_say(message) or processes.leave_last_word(text)
    (file_logger if shown else logger).error("%s", text)


def run_once(
    arguments: Arguments,
    read_data: Callable[[Arguments], Any],
    build_task: Callable[[Arguments, Any, int], ReportingTask],
    processes: Processes,
    interruption: Interruption,
) -> dict[str, Any]:
    """Train or evaluate, as the flags say.

    Args:
        arguments: the command line.
        read_data: from the arguments, what the annotation files hold; called before anything slow, and raises one
            error for everything that is wrong with them.
        build_task: from the arguments, that data and CLIP's image size, the task.
        processes: to share the work among.
        interruption: tells when to stop.

    Returns:
        What ``results.json`` holds.
    """
    folder = RunFolder(arguments.common.output_dir, processes.is_main)
    folder.start_logging()
    training = _check_mode(arguments, METHODS[arguments.method])
    if training:
        check_batch_size(arguments.train.batch_size, processes.world_size)
    # an evaluation in a training's folder does not write over what the training left
    folder.suffix = "_eval" if not training and folder.has(LAST) else ""
    try:
        with contextlib.ExitStack() as stack:
            if training:
                stack.enter_context(folder.lock())
            stack.enter_context(mark_when_interrupted(folder, processes, interruption))
            stack.enter_context(determinism(arguments.common.deterministic))
            return _run(arguments, training, read_data, build_task, processes, folder, interruption)
    finally:
        folder.close()


def mark_when_interrupted(
    folder: RunFolder, processes: Processes, interruption: Interruption
) -> contextlib.AbstractContextManager:
    """Within this, a run that is told to stop leaves a mark in its folder; launchers hide exit codes."""

    def mark() -> None:
        if not processes.others_failed():  # else the launcher stops the rest, and nobody asked for it
            folder.mark_interrupted(interruption.signal_name)

    return interruption.when_interrupted(mark)


@contextlib.contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Within this, if wanted, only algorithms that give the same bits every time; torch raises where it has none."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _run(
    arguments: Arguments,
    training: bool,
    read_data,
    build_task,
    processes: Processes,
    folder: RunFolder,
    interruption: Interruption,
) -> dict[str, Any]:
    start = time.perf_counter()
    common = arguments.common
    context_length = known_context_length(common.pretrained_clip_name)
    if context_length is not None:  # else it is checked when the model is built
        check_max_words(common.max_words, context_length)
    logger.info("reading the annotation files of %s and finding the videos", arguments.datatype)
    data = read_data(arguments)
    logger.info("loading CLIP %s", common.pretrained_clip_name)
    precision = choose_precision(arguments.train.precision, processes.device)
    clip = load_clip(common.pretrained_clip_name, common.pretrained_dir, common.trust_weights)
    task = build_task(arguments, data, clip.image_size)
    identity = make_identity(arguments, clip, precision, task)
    model = build_model(arguments, clip).to(processes.device, precision.dtype)
    trained, device, world_size = model.num_trainable(), processes.device, processes.world_size
    logger.info(
        "%s: %d trainable parameters, %s on %s, %d process(es)",
        arguments.method,
        trained,
        precision.name,
        device,
        world_size,
    )
    if common.init_model is not None:
        checkpoint = load_checkpoint(common.init_model)
        load_model(model, checkpoint, arguments, identity)
        if processes.is_main:
            warn_of_other_lengths(checkpoint, identity, common.init_model)
    if processes.is_main:
        report_cut_captions(model, task)

    settings = {"method": arguments.method, "datatype": arguments.datatype} | all_settings(*arguments.parts)
    counts = {}
    if training:
        trainer = Trainer(
            model,
            task,
            arguments.train,
            processes,
            precision,
            folder,
            identity,
            common.pretrained_clip_name,
            interruption,
        )
        trainer.resume()
        begin(folder, settings, task)
        logger.info("%s; results go to %s", trainer.plan(), folder.path)
        position = trainer.train()
        load_best(model, processes, folder)
        epoch = position.best["epoch"]
        logger.info("reporting epoch %d, the best by %s on the evaluation set", epoch, task.selection_metric)
        origin = {"checkpoint": BEST, "epoch": epoch, "last_epoch": rounded(position.last)}
        counts = {name: getattr(position, name) for name in ("bad_videos", "nonfinite_steps", "overflow_steps")}
    else:
        folder.remove(DROPPED)
        begin(folder, settings, task)
        logger.info("evaluating on %s; results go to %s", task.evaluated_on, folder.path)
        origin = {"checkpoint": None if common.init_model is None else str(common.init_model)}
    metrics = rounded(task.report(model, processes, precision, folder))
    if dropped := task.evaluation_set.dropped:
        folder.write_dropped(dropped)
        logger.warning("%d evaluation videos were left out, which changes the metrics", len(dropped))
    results = {
        "dataset": arguments.datatype,
        "method": arguments.method,
        **metrics,
        **origin,
        "trainable_parameters": trained,
        "clip": common.pretrained_clip_name,
        "max_frames": common.max_frames,
        "max_words": common.max_words,
        "precision": precision.name,
        **task.counts,
        **counts,
        "missing_videos": len(task.missing),
        "dropped_videos": len(dropped),
        "seconds": round(position.seconds if training else time.perf_counter() - start, 1),
        "peak_memory_mb": round(peak_memory_mb(device), 1),
    }
    folder.write_json(RESULTS, results)
    logger.info("%s", task.legend)
    logger.info("%s", " ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
    return results


def report_cut_captions(model: VideoTextModel, task: ReportingTask) -> None:
    """Say of each list how many captions are cut: what is behind the cut does not exist for the model."""
    encoder = model.text_encoder
    for name, captions in task.captions.items():
        cut = encoder.count_cut(captions)
        if cut == 0:
            logger.info("none of %s %s is longer than %d tokens", f"{len(captions):,}", name, encoder.max_words)
            continue
        more = f"a larger --max_words, up to {encoder.context_length} with this CLIP, keeps more of them"
        if encoder.max_words == encoder.context_length:
            more = "this CLIP takes no more"
        logger.warning(
            "%s of %s %s were cut to %d tokens, start and end included: %s",
            *(f"{cut:,}", f"{len(captions):,}", name, encoder.max_words, more),
        )


def begin(folder: RunFolder, settings: Mapping[str, Any], task: ReportingTask) -> None:
    """Write what belongs to a run from its start."""
    folder.remove(INTERRUPTED)
    folder.remove(MISSING)
    folder.write_config(settings)
    for name, text in task.files.items():
        folder.write_text(name, text)
    if task.missing:
        folder.write_table(MISSING, ["list", "video"], task.missing)
        logger.warning("%d videos have no file and are left out; %s lists them", len(task.missing), MISSING)


def load_best(model: VideoTextModel, processes: Processes, folder: RunFolder) -> None:
    """Set a model to the best checkpoint of a finished training.

    Raises:
        UserError: if it is gone.
    """
    best = processes.broadcast_object(folder.load_checkpoint(BEST))
    if best is None:
        raise UserError(f"{folder.path / BEST} is missing; the last epoch is in {folder.path / LAST}")
    model.load_trained_state(best["model"])


def _check_mode(arguments: Arguments, method: Method) -> bool:
    """Whether to train; refuses what makes no sense.

    Raises:
        UserError: saying what to give.
    """
    common = arguments.common
    if not common.do_train and not common.do_eval:
        raise UserError("give --do_train, which also evaluates after each epoch, or --do_eval")
    if common.do_train and not method.trains:
        raise UserError(f"--method {arguments.method} has nothing to train: give --do_eval alone")
    if not common.do_train and method.trains and common.init_model is None:
        raise UserError(
            f"--method {arguments.method} needs a checkpoint to be evaluated: give --init_model, the {BEST} of a "
            f"training. Untrained prompts are not zero-shot; that is --method zero_shot."
        )
    if not method.trains and common.init_model is not None:
        raise UserError(f"--method {arguments.method} has no parameters that --init_model could set")
    in_output = common.init_model is not None and common.init_model.resolve().parent == common.output_dir.resolve()
    if common.do_train and in_output:
        raise UserError(f"--init_model {common.init_model} lies in --output_dir, which the training writes to")
    return common.do_train


def build_model(arguments: Arguments, clip: LoadedCLIP) -> VideoTextModel:
    """The method's model, its initial values a function of the seed alone."""
    torch.manual_seed(arguments.train.seed)
    common = arguments.common
    method = METHODS[arguments.method]
    model = method.build(clip, arguments.method_settings, common.max_frames, common.max_words)
    model.note_buffers_of_clip(clip.model)
    model.video_encoder.checkpoint_activations = arguments.train.checkpoint_activations
    if common.compile:
        # every batch of a training has one shape, those of an evaluation two: each is compiled for itself
        model.video_encoder.compile(dynamic=False)
    return model


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


def make_identity(arguments: Arguments, clip: LoadedCLIP, precision: Precision, task: ReportingTask) -> dict[str, Any]:
    """Everything that a training's result depends on, by name; files count by what they hold, not where they are."""
    init_model = arguments.common.init_model
    sets = {"training_set": task.training_set, "evaluation_set": task.evaluation_set}
    return {
        "method": arguments.method,
        "datatype": arguments.datatype,
        **result_settings(*arguments.parts),
        "init_model": None if init_model is None else tensors_fingerprint(load_checkpoint(init_model)["model"]),
        "precision": precision.name,
        "clip": clip_fingerprint(clip),
        **task.identity,
        **{name: None if data is None else samples_fingerprint(data.samples) for name, data in sets.items()},
        "packed": pack_fingerprint(arguments.data.pack, [data.samples for data in sets.values() if data is not None]),
    }


def load_model(
    model: VideoTextModel, checkpoint: Mapping[str, Any], arguments: Arguments, identity: Mapping[str, Any]
) -> None:
    """Load a checkpoint's parameters into a model that was built like the one they were trained in.

    Raises:
        UserError: if it was trained with another method, method settings or CLIP; the message lists the differences.
    """
    common = arguments.common
    now = {"identity": identity, "clip_name": common.pretrained_clip_name}
    names = ["method", "clip", *model_settings(arguments.method_settings)]
    if differences := list_differences(checkpoint, now, names):
        listed = "\n  ".join(differences)
        raise UserError(f"{common.init_model} was trained in another model; give the same settings:\n  {listed}")
    model.load_trained_state(checkpoint["model"])


def warn_of_other_lengths(checkpoint: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Say where a model is used with more or fewer frames or words than it was trained with."""
    for name in ("max_frames", "max_words"):
        before, now = checkpoint["identity"][name], identity[name]
        if before != now:
            logger.warning("--%s %s: %s was trained with %s, which may change its accuracy", name, now, path, before)


def clip_fingerprint(clip: LoadedCLIP) -> str:
    """A digest of a CLIP's weights and of what its weights do not show: layers, heads, activations, normalisation."""
    heads = [module.num_heads for module in clip.model.modules() if hasattr(module, "num_heads")]
    structure = repr((str(clip.model), heads, clip.model.context_length, clip.mean, clip.std))
    return f"{tensors_fingerprint(clip.model.state_dict())}-{hashlib.sha256(structure.encode()).hexdigest()[:8]}"


def tensors_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """A digest of named tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:16]


def pack_fingerprint(pack: PackIndex | None, lists: Sequence[Sequence[Sample]]) -> str | None:
    """A digest of the packed frames that some lists of samples read; None for video files, which may be moved.

    A pack holds other pixels than the videos it was made from, if it holds JPEG, and a run goes on with what it began.
    """
    if pack is None:
        return None
    return pack.fingerprint(dict.fromkeys(sample.path for samples in lists for sample in samples))


def samples_fingerprint(samples: Sequence[Sample]) -> str:
    """The number of samples and a digest of their ids and captions, in order; files may move."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.sample_id, sample.video_id, sample.captions, sample.label)).encode())
    return f"{len(samples)} samples, {digest.hexdigest()[:16]}"
