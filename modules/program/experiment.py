"""One run of a main program: its folder, its model, training, and what it leaves. The programs put these in order."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.settings import all_settings, former_settings, result_settings
from dataloaders.batches import check_batch_size, check_parts
from dataloaders.missing_videos import MISSING_COLUMNS, MISSING_VIDEOS
from dataloaders.video.preparation import NOT_RECORDED, combine, preparation_of
from modules.clip.loader import LoadedCLIP, known_context_length, load_clip
from modules.methods import METHODS
from modules.methods.base import Method
from modules.model.measures import explain
from modules.model.text_encoder import check_max_words
from modules.model.video_text import VideoTextModel
from modules.program.arguments import Arguments
from modules.program.build import build_model, find_checkpoint, load_trained
from modules.program.launch import Session
from modules.runtime.compute import Compute
from modules.runtime.identity import clip_fingerprint, pack_fingerprint, samples_fingerprint, tensors_fingerprint
from modules.runtime.precision import choose_precision
from modules.runtime.run_folder import (
    BEST,
    DROPPED,
    INTERRUPTED,
    LAST,
    RESULTS,
    RunFolder,
    load_checkpoint,
)
from modules.tasks.base import Task
from modules.tasks.metrics import rounded
from modules.tasks.thinned import find_thinned, say_thinned
from modules.training.trainer import Trainer, peak_memory_mb

logger = logging.getLogger("stop")


class Experiment:
    """A run under way; `open_run` makes one.

    Attributes:
        arguments: the command line.
        trains: whether it trains; else it evaluates only.
        folder: what it leaves.
        compute: where it computes.
        identity: everything that its result depends on, by name; set by `identify`.
        prepared: how the videos of its lists were prepared, by the list's name; set when it begins, in the main process
            alone. It is no part of the identity: files count by what they hold.
    """

    def __init__(self, arguments: Arguments, trains: bool, folder: RunFolder, session: Session):
        self.arguments = arguments
        self.trains = trains
        self.folder = folder
        self.session = session
        precision = choose_precision(arguments.train.precision, session.processes.device)
        self.compute = Compute(session.processes, precision)
        self.identity: dict[str, Any] = {}
        self.prepared: dict[str, Any] = {}
        self._started_from: dict[str, Any] | None = None  # what --init_model holds, from `identify` to `build_model`
        self._origin: dict[str, Any] = {}  # which checkpoint the results are of
        self._start = time.perf_counter()

    def load_clip(self) -> LoadedCLIP:
        """The CLIP that the flags name."""
        common = self.arguments.common
        logger.info("loading CLIP %s", common.pretrained_clip_name)
        return load_clip(common.pretrained_clip_name, common.pretrained_dir, common.trust_weights)

    def identify(self, clip: LoadedCLIP, task: Task) -> None:
        """Note everything that a training's result depends on, by name, before a method changes CLIP.

        Files count by what they hold, not by where they are.
        """
        arguments, init_model = self.arguments, self.arguments.common.init_model
        sets = {"training_set": task.training_set, "evaluation_set": task.evaluation_set}
        lists = [data.samples for data in sets.values() if data is not None]
        started_from = None
        if init_model is not None:
            self._started_from = load_checkpoint(find_checkpoint(init_model))
            started_from = tensors_fingerprint(self._started_from["model"])
        self.identity = {
            "method": arguments.method,
            "datatype": arguments.datatype,
            **result_settings(*arguments.parts),
            "init_model": started_from,
            "precision": self.compute.precision.name,
            "clip": clip_fingerprint(clip),
            **task.identity,
            **{name: None if data is None else samples_fingerprint(data.samples) for name, data in sets.items()},
            "packed": pack_fingerprint(arguments.data.pack, lists),
        }

    def build_model(self, clip: LoadedCLIP, task: Task) -> VideoTextModel:
        """The method's model, on its device, with ``--init_model``'s values if there are any."""
        arguments, common, compute = self.arguments, self.arguments.common, self.compute
        model = build_model(
            arguments.method,
            arguments.method_settings,
            clip,
            common.max_frames,
            common.max_words,
            arguments.train.seed,
        )
        for encoder in (model.video_encoder, model.text_encoder):
            encoder.checkpoint_activations = arguments.train.checkpoint_activations
        if common.compile:
            # every batch of a training has one shape, those of an evaluation two: each is compiled for itself
            model.video_encoder.compile(dynamic=False)
        model.to(compute.processes.device, compute.precision.dtype)
        logger.info(
            "%s: %d trainable parameters, %s on %s, %d process(es)",
            *(arguments.method, model.num_trainable(), compute.precision.name, compute.processes.device),
            compute.processes.world_size,
        )
        if self._started_from is not None:
            checkpoint, self._started_from = self._started_from, None  # it may be as large as CLIP
            now = {"identity": self.identity, "clip_name": common.pretrained_clip_name}
            changed = load_trained(model, checkpoint, common.init_model, now, arguments.method_settings)
            if compute.processes.is_main:
                if changed is not None:
                    logger.warning("%s", changed)
                warn_of_other_lengths(checkpoint["identity"], self.identity, common.init_model)
        if compute.processes.is_main:
            report_cut_captions(model, task)
        task.check(model)
        return model

    def train(self, model: VideoTextModel, task: Task) -> None:
        """Train, or continue, and set the model to the best checkpoint."""
        arguments, common, processes = self.arguments, self.arguments.common, self.compute.processes
        trained_dir = common.pretrained_dir
        source = {
            "clip_name": common.pretrained_clip_name,
            "pretrained_dir": None if trained_dir is None else str(trained_dir),
        }
        former = former_settings(*(type(part) for part in arguments.parts))
        trainer = Trainer(
            model,
            task,
            arguments.train,
            self.compute,
            self.folder,
            self.identity,
            source,
            self.session.interruption,
            former,
        )
        trainer.resume()
        self._begin(task, continued=trainer.position.step > 0)
        logger.info("%s; results go to %s", trainer.plan(), self.folder.path)
        position = trainer.train()
        best = processes.broadcast_object(self.folder.load_checkpoint(BEST))
        if best is None:
            raise UserError(f"{self.folder.path / BEST} is missing; the last epoch is in {self.folder.path / LAST}")
        model.load_trained_state(best["model"])
        epoch = position.best["epoch"]
        logger.info("reporting epoch %d, the best by %s on the evaluation set", epoch, task.selection_metric)
        self._origin = {
            "checkpoint": BEST,
            "epoch": epoch,
            "last_epoch": rounded(position.last),
            "seconds": position.seconds,
            **{name: getattr(position, name) for name in ("bad_videos", "nonfinite_steps", "overflow_steps")},
        }

    def write_results(self, model: VideoTextModel, task: Task) -> dict[str, Any]:
        """Evaluate what was trained or loaded, write ``results.json`` and the task's files; what that file holds."""
        arguments, common, folder = self.arguments, self.arguments.common, self.folder
        origin = dict(self._origin)
        if not self.trains:
            folder.remove(DROPPED)
            self._begin(task)
            logger.info("evaluating on %s; results go to %s", task.evaluated_on, folder.path)
            origin = {"checkpoint": None if common.init_model is None else str(common.init_model)}
        metrics = rounded(task.report(model, self.compute, folder))
        if dropped := task.evaluation_set.dropped:
            folder.write_dropped(dropped)
        thinned = find_thinned(task)
        seconds = origin.pop("seconds", time.perf_counter() - self._start)
        of_checkpoint = {name: origin.pop(name) for name in ("checkpoint", "epoch", "last_epoch") if name in origin}
        results = {
            "dataset": arguments.datatype,
            "method": arguments.method,
            **metrics,
            **of_checkpoint,
            "trainable_parameters": model.num_trainable(),
            "clip": common.pretrained_clip_name,
            "max_frames": common.max_frames,
            "max_words": common.max_words,
            "precision": self.compute.precision.name,
            "prepared": self.prepared,
            **task.counts,
            **origin,
            "missing_videos": len(task.missing),
            "dropped_videos": len(dropped),
            **thinned,
            "seconds": round(seconds, 1),
            "peak_memory_mb": round(peak_memory_mb(self.compute.processes.device), 1),
        }
        folder.write_json(RESULTS, results)
        logger.info("%s", explain(task.legend, metrics))
        logger.info("%s", " ".join(f"{name} {value:.2f}" for name, value in metrics.items()))
        if thinned:
            counts = thinned["thinned"]
            logger.warning(
                "%s, which changes the metrics: %d have no file and %d cannot be read",
                *(say_thinned(thinned), counts["missing"], counts["dropped"]),
            )
        return results

    def _begin(self, task: Task, continued: bool = False) -> None:
        """Write what belongs to a run from its start; `continued`, also what it was before."""
        arguments, folder = self.arguments, self.folder
        folder.remove(INTERRUPTED)
        folder.remove(MISSING_VIDEOS)
        if folder.is_main:
            self.prepared = find_prepared(task)
            before = folder.read_config().get("prepared", {}) if continued else {}
            for name in before.keys() & self.prepared.keys():
                if (both := combine([before[name], self.prepared[name]])) != before[name]:
                    now = json.dumps(self.prepared[name])
                    logger.warning("%s videos: were %s, are %s", name, json.dumps(before[name]), now)
                self.prepared[name] = both
        named = {"method": arguments.method, "datatype": arguments.datatype}
        folder.write_config(named | all_settings(*arguments.parts), self.prepared)
        for name, text in task.files.items():
            folder.write_text(name, text)
        if task.missing:
            folder.write_table(MISSING_VIDEOS, MISSING_COLUMNS, task.missing)
            logger.warning("%d videos have no file and are left out; %s lists them", len(task.missing), MISSING_VIDEOS)


@contextlib.contextmanager
def open_run(arguments: Arguments, session: Session) -> Iterator[Experiment]:
    """Open a run's folder and log, and refuse what makes no sense; within this it may compute.

    Raises:
        UserError: saying what to give instead.
    """
    folder = RunFolder(arguments.common.output_dir, session.processes.is_main)
    folder.start_logging()
    trains = check_mode(arguments, METHODS[arguments.method])
    if trains:
        world_size = session.processes.world_size
        check_batch_size(arguments.train.batch_size, world_size)
        check_parts(arguments.train.accumulate, arguments.train.batch_size, world_size)
    # an evaluation in a training's folder does not write over what the training left
    folder.suffix = "_eval" if not trains and folder.has(LAST) else ""
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(folder.lock())
            stack.enter_context(mark_when_interrupted(folder, session))
            stack.enter_context(determinism(arguments.common.deterministic))
            context_length = known_context_length(arguments.common.pretrained_clip_name)
            if context_length is not None:  # else it is checked when the model is built
                check_max_words(arguments.common.max_words, context_length)
            logger.info("reading the annotation files of %s and finding the videos", arguments.datatype)
            yield Experiment(arguments, trains, folder, session)
    finally:
        folder.close()


def find_prepared(task: Task) -> dict[str, Any]:
    """How the videos that a task reads were prepared, for each of its lists; see `dataloaders/video/preparation.py`."""
    prepared = {}
    for name, data in (("training", task.training_set), ("evaluation", task.evaluation_set)):
        if data is None:
            continue
        try:
            prepared[name] = preparation_of((sample.path for sample in data.samples), data.settings.pack)
        except UserError as error:  # no result depends on the note
            logger.warning("how the %s videos were prepared is not recorded: %s", name, error)
            prepared[name] = NOT_RECORDED
    return prepared


def mark_when_interrupted(folder: RunFolder, session: Session) -> contextlib.AbstractContextManager:
    """Within this, a run that is told to stop leaves a mark in its folder; launchers hide exit codes."""

    def mark() -> None:
        if not session.processes.others_failed():  # else the launcher stops the rest, and nobody asked for it
            folder.mark_interrupted(session.interruption.signal_name)

    return session.interruption.when_interrupted(mark)


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


def report_cut_captions(model: VideoTextModel, task: Task) -> None:
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


def check_mode(arguments: Arguments, method: Method) -> bool:
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
    if common.do_train and common.init_model is not None:
        folder = find_checkpoint(common.init_model).resolve().parent
    else:
        folder = None
    if folder == common.output_dir.resolve():
        raise UserError(f"--init_model {common.init_model} lies in --output_dir, which the training writes to")
    return common.do_train


def warn_of_other_lengths(trained: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Say where a model is used with more or fewer frames or words than it was trained with."""
    for name in ("max_frames", "max_words"):
        before, now = trained[name], identity[name]
        if before != now:
            logger.warning("--%s %s: %s was trained with %s, which may change its accuracy", name, now, path, before)
