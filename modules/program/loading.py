"""A run that loads by itself: its model, with embeddings of videos and texts, from what a training left.

run = load_run("runs/msrvtt")                 # or load_run(method="zero_shot", clip="ViT-B/32")
video = run.embed_videos(["a.mp4", "b.mkv"])  # (N, E)
text = run.embed_texts(["a dog runs"])        # (M, E)
"""

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from common.settings import model_settings, range_problems
from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings
from modules.clip.loader import LoadedCLIP, load_clip
from modules.methods import METHODS
from modules.model.video_text import VideoTextModel
from modules.program.arguments import CommonSettings, recipe_of
from modules.program.build import build_model, find_checkpoint, load_trained, settings_of
from modules.runtime.compute import Compute
from modules.runtime.identity import clip_fingerprint
from modules.runtime.precision import choose_precision
from modules.runtime.processes import Processes
from modules.runtime.run_folder import load_checkpoint
from modules.tasks.embedding import check_searchable, embed_items

logger = logging.getLogger("stop")

BATCH = 32  # videos or texts at a time
NO_FILE = "there is no such file"
SKIP_BAD = 'Replace this video, or give on_bad="skip", which makes its row NaN.'
INSTEAD = "Train with"


@dataclass(frozen=True)
class Run:
    """A model that can be used.

    Attributes:
        model: in eval mode, on its device.
        clip: what it was built around.
        method, settings: the method's name and settings.
        max_frames, max_words: frames a video, tokens a caption with start and end.
        compute: where and in what precision.
        decoder_errors: as for ``--decoder_errors``; the training's.
    """

    model: VideoTextModel
    clip: LoadedCLIP
    method: str
    settings: Any
    max_frames: int
    max_words: int
    compute: Compute
    decoder_errors: str = "reject"

    def embed_videos(
        self,
        paths: Sequence[str | Path],
        on_bad: str = "raise",
        batch_size: int = BATCH,
        num_workers: int = 2,
        video_time_limit: float = 60.0,
    ) -> np.ndarray:
        """Embed video files, of any length and container, with a progress bar where there is a terminal.

        Args:
            paths: of the files.
            on_bad: ``raise``, or ``skip`` to go on without a video that is missing or cannot be decoded: its row is
                NaN, and a warning names it with the reason.
            batch_size: videos encoded at a time.
            num_workers: processes that decode; 0 to decode in this one.
            video_time_limit: seconds that decoding a video may take.

        Returns:
            (N, E) float32, unit length, a row a path.

        Raises:
            BadVideoError: naming a file that is missing or cannot be decoded, and the reason.
            UserError: if the model scores pairs and has no embeddings to search.
        """
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"on_bad must be 'raise' or 'skip', found {on_bad!r}")
        check_searchable(self.model, INSTEAD)
        paths = [paths] if isinstance(paths, str | Path) else list(paths)
        samples = [Sample(str(row), str(row), Path(path), ("",)) for row, path in enumerate(paths)]
        bad = {sample.video_id: NO_FILE for sample in samples if not sample.path.is_file()}
        if bad and on_bad == "raise":
            raise BadVideoError(samples[int(next(iter(bad)))].path, NO_FILE)
        there = [sample for sample in samples if sample.video_id not in bad]
        rows = np.full((len(samples), self.clip.output_width), np.nan, dtype=np.float32)
        if there:
            decoding = DecodingSettings(video_time_limit=video_time_limit, decoder_errors=self.decoder_errors)
            settings = VideoSettings(self.max_frames, self.clip.image_size, seed=0, decoding=decoding)
            dataset = EvaluationDataset(there, settings, drop_bad=on_bad == "skip")
            try:
                embedded, _ = embed_items(
                    self.model, dataset, range(len(there)), batch_size, num_workers, self.compute, SKIP_BAD
                )
                rows[[int(sample.video_id) for sample in there]] = embedded
            except UserError:  # of an evaluation, which has nothing left to do where no video could be read
                if len(dataset.dropped) < len(there):
                    raise
            bad |= dataset.dropped
        for row, reason in bad.items():
            rows[int(row)] = np.nan
            logger.warning("%s is left out: %s", samples[int(row)].path, reason)
        return rows

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = BATCH) -> np.ndarray:
        """Embed texts; a warning says how many are cut to `max_words` tokens.

        Returns:
            (M, E) float32, unit length.

        Raises:
            UserError: if the model scores pairs and has no embeddings to search.
        """
        check_searchable(self.model, INSTEAD)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if cut := self.model.text_encoder.count_cut(texts):
            logger.warning(
                "%d of %d texts were cut to %d tokens, start and end included", cut, len(texts), self.max_words
            )
        parts = [texts[start : start + batch_size] for start in range(0, len(texts), batch_size)]
        with self.compute.precision.autocast():
            rows = [self.model.encode_text(part).float().cpu().numpy() for part in parts]
        return np.concatenate([np.zeros((0, self.clip.output_width), np.float32), *rows])


def load_run(
    source: str | Path | None = None,
    *,
    method: str | None = None,
    clip: str | Path | LoadedCLIP | None = None,
    max_frames: int | None = None,
    max_words: int | None = None,
    precision: str | None = None,
    device: str | torch.device | None = None,
    pretrained_dir: str | Path | None = None,
    trust_weights: bool = False,
) -> Run:
    """Load what a training left, or a method that trains nothing; no command line is needed.

    Args:
        source: the output folder of a training, or a checkpoint (``best.pt``); None with `method`.
        method: one that trains nothing, such as ``zero_shot``, with its default settings.
        clip: a name or path as for ``--pretrained_clip_name``, or a loaded CLIP; None for where the training took it
            from. Other weights than the training's are refused.
        max_frames, max_words: None for the training's.
        precision: as for ``--precision``; None for the training's where this device has it.
        device: None for a GPU where there is one.
        pretrained_dir: where OpenAI's files are; None for where the training had them.
        trust_weights: as ``--trust_weights``; never taken from a checkpoint.

    Returns:
        The run, its model in eval mode.

    Raises:
        UserError: if there is no checkpoint, or it does not fit the CLIP; the message says what to give.
    """
    if (source is None) == (method is None):
        raise UserError("load_run takes the folder or checkpoint of a training, or method=, one of the two")
    path = None if source is None else find_checkpoint(Path(source))
    checkpoint = {} if path is None else load_checkpoint(path)
    trained = checkpoint.get("identity", {})
    method = trained.get("method", method)
    if method not in METHODS:
        raise UserError(f"{'method' if path is None else path}: {method} is none of {', '.join(METHODS)}")
    if path is None and METHODS[method].trains:
        raise UserError(f"method {method} needs a training: give its folder or checkpoint")
    settings = settings_of(METHODS[method].settings, trained)
    defaults = {field.name: field.default for field in dataclasses.fields(CommonSettings)} | recipe_of(method) | trained
    clip, name = find_clip(clip, checkpoint, path, pretrained_dir, trust_weights)
    identity = {"method": method, "clip": clip_fingerprint(clip), **model_settings(settings)}  # before CLIP is changed
    given = {name: value for name, value in (("max_frames", max_frames), ("max_words", max_words)) if value is not None}
    lengths = CommonSettings(**{name: defaults[name] for name in ("max_frames", "max_words")} | given)
    if problems := range_problems(lengths):
        raise UserError("\n".join(problems))
    max_frames, max_words = lengths.max_frames, lengths.max_words
    for name, value in given.items():
        if trained and value != trained[name]:
            logger.warning(
                "%s %s, trained with %s, which may change the accuracy: %s", name, value, trained[name], path
            )
    with torch.random.fork_rng():  # the caller's draws are none of ours
        model = build_model(method, settings, clip, max_frames, max_words, seed=0)
    if path is not None:
        changed = load_trained(model, checkpoint, path, {"identity": identity, "clip_name": name}, settings)
        if changed is not None:
            logger.warning("%s", changed)
    compute = choose_compute(precision, trained.get("precision", "fp32"), device)
    model.to(compute.processes.device, compute.precision.dtype).eval()
    return Run(model, clip, method, settings, max_frames, max_words, compute, defaults["decoder_errors"])


def find_clip(
    clip: str | Path | LoadedCLIP | None,
    checkpoint: Mapping[str, Any],
    path: Path | None,
    pretrained_dir: str | Path | None,
    trust_weights: bool,
) -> tuple[LoadedCLIP, str]:
    """The CLIP given, or the one that a training used, and what it is called.

    Raises:
        UserError: if it cannot be loaded.
    """
    if isinstance(clip, LoadedCLIP):  # a copy: a method may change it, and the caller may use it for more than one run
        return dataclasses.replace(clip, model=copy.deepcopy(clip.model)), "the CLIP given"
    recorded = checkpoint.get("clip_name")
    name = str(clip or recorded or CommonSettings.pretrained_clip_name)
    folder = pretrained_dir or checkpoint.get("pretrained_dir")
    try:
        return load_clip(name, None if folder is None else Path(folder), trust_weights), name
    except UserError as error:
        if name != recorded:
            raise
        raise UserError(f"{error}\n{path} was trained with this CLIP; if it has moved, give clip=") from error


def choose_compute(precision: str | None, trained: str, device: str | torch.device | None) -> Compute:
    """This process alone, on a device, in a precision that it has."""
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if precision is None:
        # amp is bf16 where there is bf16
        precision = "amp" if trained == "bf16" or (trained == "fp16" and device.type != "cuda") else trained
    return Compute(Processes(0, 1, device), choose_precision(precision, device))
