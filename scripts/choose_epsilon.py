"""What ε is chosen from: how much changes in the gaps of real clips, and of still pictures that are only noisy.

  .venv/bin/python scripts/choose_epsilon.py --videos VIDEOS --clip runs/toy/clip   # writes docs/results/epsilon.json
  .venv/bin/python scripts/choose_epsilon.py --table                                # prints what docs/method.md has

ε is the share below which a gap counts as still (`InterFramePrompting.frame_variation`): the gap's sum, W^t before it
is normalised, over the mean square of the tokens read · 27 · the mean square of N^t's kernel. It must lie below the
largest gap of every real clip, in every layer, and above every gap of a still picture. Clips of fewer frames than are
read, moments of a tenth of a second, are measured and decide nothing, nor do their pictures.

Measured are, of every video in a folder, 12 frames as an evaluation reads them, and the first of these as a still
picture of 12 frames: encoded anew as H.264 at two qualities, the same with Gaussian noise of four grey levels added to
each frame before it is encoded, and this once more with a keyframe every four frames, each of which shows another error
of the encoder. They are measured in the plain encoder, which is what STOP is before training (P^s starts without
effect), by untrained N^s and N^t of several seeds, in a ViT-B/32 with random weights and in the CLIP that --clip names.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import av  # before decord, which the project's reader imports: its libraries keep PyAV's from some encoders
import numpy as np
import open_clip
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.progress import Progress
from dataloaders.items import EvaluationDataset, VideoSettings
from dataloaders.samples import Sample
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from dataloaders.video_files import list_videos
from modules.clip.loader import LoadedCLIP, load_clip
from modules.clip.vision import ClipVisionTower
from modules.methods.stop.inter_frame import InterFramePrompting
from modules.methods.stop.stop import StopSettings, build_prompting
from modules.model.prompting import Prompted, VideoPrompting, VideoTokens
from modules.model.readouts import Mean
from modules.model.scopes import FrameScope, JointScope
from modules.model.tokens import grid_conv3d
from modules.model.video_encoder import VideoEncoder
from modules.runtime.run_folder import describe_machine, git_commit

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "docs" / "results" / "epsilon.json"
REAL, STILL, NOISY, KEYFRAMES = KINDS = ("real", "still", "noisy", "keyframes")
RANDOM, GIVEN = "random ViT-B/32", "toy CLIP"
KERNEL = 27  # weights of N^t for each channel
SCOPES = {"joint": JointScope(mean_of_frames=True), "frame": FrameScope()}  # as STOP has them by default
UNHEARD = {"spatial_width": 1, "spatial_hidden": 1, "temporal_width": 1}  # P^s and P^t make nothing that is looked at


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        num_frames: T.
        crfs: x264's constant rate factors of the still clips.
        noise: standard deviation in grey levels, added to each frame of half of them.
        still_frames: of a still clip; its first is a keyframe. keyframes_every: so many frames in those with more.
        scopes: of attention.
        seeds: of N^s and N^t. clip_seeds: of the random CLIPs.
    """

    num_frames: int = 12
    crfs: tuple[int, ...] = (23, 35)
    noise: float = 4.0
    still_frames: int = 12
    keyframes_every: int = 4
    scopes: tuple[str, ...] = ("joint", "frame")
    seeds: tuple[int, ...] = (0, 1, 2)
    clip_seeds: tuple[int, ...] = (0, 1)


QUICK = Plan(crfs=(35,), seeds=(0,), clip_seeds=())


# --- Shares -----------------------------------------------------------------------------------------------


def gap_shares(
    inter_frame: InterFramePrompting, read: Tensor, differences: Tensor, regions: Tensor, real: Tensor
) -> Tensor:
    """What `InterFramePrompting.frame_variation` compares with ε, for the same arguments: (B, T − 1)."""
    kernel = inter_frame.dynamics.weight
    changes = grid_conv3d(inter_frame.dynamics, differences, inter_frame.grid).square().mean(-1)  # (B, T − 1, P)
    weighted = ((1 + inter_frame.beta * regions[:, 1:]) * changes).mean(-1)
    power = (read.square().mean((-1, -2)) * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)  # (B, 1)
    return weighted / (power * KERNEL * kernel.square().mean())


class Listener(VideoPrompting):
    """Asks several STOP promptings before every block and does nothing of what they say: the encoder stays plain.

    Attributes:
        shares: (B, T − 1) for each layer and prompting, as they were asked.
    """

    def __init__(self, tower: ClipVisionTower, plan: Plan):
        """Make untrained promptings, one a seed."""
        super().__init__()
        self.shares: list[Tensor] = []
        self.promptings = nn.ModuleList()
        for seed in plan.seeds:
            torch.manual_seed(seed)
            self.promptings.append(build_prompting(tower, StopSettings(**UNHEARD), plan.num_frames))
            self._listen_to(self.promptings[-1].inter_frame)

    def _listen_to(self, inter_frame: InterFramePrompting) -> None:
        asked = inter_frame.frame_variation

        def frame_variation(read: Tensor, differences: Tensor, regions: Tensor, real: Tensor) -> Tensor:
            self.shares.append(gap_shares(inter_frame, read, differences, regions, real))
            return asked(read, differences, regions, real)

        inter_frame.frame_variation = frame_variation

    def before(self, tower: ClipVisionTower, layer: int, tokens: VideoTokens, keys: Tensor | None) -> Prompted:
        """Ask all of them."""
        for prompting in self.promptings:
            prompting.before(tower, layer, tokens, keys)
        return Prompted(tokens)


def make_encoder(clip: LoadedCLIP, scope: str, plan: Plan) -> VideoEncoder:
    """A CLIP's plain encoder with a `Listener`."""
    tower = clip.vision_tower()
    return VideoEncoder(tower, SCOPES[scope], Mean(), Listener(tower, plan)).eval()


@torch.no_grad()
def measure(encoder: VideoEncoder, frames: Tensor, num_frames: Tensor) -> Tensor:
    """The shares of the gaps of some videos.

    Args:
        frames: (B, T, 3, S, S) uint8, of which as many are real as `num_frames` (B,) says.

    Returns:
        (layers · seeds, B, T − 1), NaN for gaps outside a video.
    """
    shares = encoder.prompting.shares
    shares.clear()
    encoder(frames, num_frames)
    outside = torch.arange(1, frames.shape[1]) >= num_frames[:, None]  # (B, T − 1)
    return torch.stack(shares).masked_fill(outside, math.nan)


def summarize(shares: Tensor) -> dict[str, float]:
    """Of (layers · seeds, clips, gaps): all gaps, and the largest one in a clip, layer and seed; to four digits."""
    every = shares[~shares.isnan()]
    largest = shares.nan_to_num(nan=-1).amax(-1).flatten()
    values = {
        "smallest": every.min(),
        "median": median(every.tolist()),
        "largest": every.max(),
        "largest_gap_at_least": largest.min(),
        "largest_gap_median": median(largest.tolist()),
    }
    return {name: float(f"{float(value):.3e}") for name, value in values.items()}


# --- Clips ------------------------------------------------------------------------------------------------


def write_still(path: Path, picture: np.ndarray, kind: str, crf: int, plan: Plan) -> Path:
    """A clip of a kind that shows (H, W, 3) uint8 all the time."""
    draw = np.random.default_rng(0)
    picture = picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]  # 4:2:0 video has even sides
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": str(crf)})
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = plan.keyframes_every if kind == KEYFRAMES else plan.still_frames
        stream.codec_context.thread_count = 1
        for _ in range(plan.still_frames):
            pixels = picture
            if kind != STILL:
                noisy = picture + draw.normal(0, plan.noise, picture.shape).round()
                pixels = noisy.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")))
        container.mux(stream.encode(None))
    return path


def make_clips(video: Path, folder: Path, plan: Plan) -> list[tuple[str, Path]]:
    """A video and the still clips made of it in a folder, each with its kind.

    Raises:
        BadVideoError: it cannot be read.
    """
    reader = VideoReader(DecodingSettings())
    try:
        picture = reader.read(video, plan.num_frames, FrameSampler())[0]
    finally:
        reader.close()
    clips = [(REAL, video)]
    for kind in (STILL, NOISY, KEYFRAMES):
        for crf in plan.crfs:
            clips.append((kind, write_still(folder / f"{kind}{crf}.mp4", picture, kind, crf, plan)))
    return clips


def read_clips(clips: Sequence[tuple[str, Path]], image_size: int, plan: Plan) -> tuple[Tensor, Tensor]:
    """Clips as an evaluation reads them: (B, T, 3, S, S) uint8, and how many frames of each are real (B,)."""
    samples = [Sample(str(path), str(path), path, ("",)) for _, path in clips]
    dataset = EvaluationDataset(samples, VideoSettings(plan.num_frames, image_size, seed=0))
    items = [dataset.read(index) for index in range(len(samples))]
    dataset.reader.close()
    return torch.stack([item.frames for item in items]), torch.tensor([item.num_frames for item in items])


def random_clip(seed: int) -> LoadedCLIP:
    """A ViT-B/32 with open_clip's initialisation."""
    torch.manual_seed(seed)
    logging.disable(logging.WARNING)  # that there are no weights
    model = open_clip.create_model("ViT-B-32-quickgelu", load_weights=False)
    logging.disable(logging.NOTSET)
    model.eval().requires_grad_(False)
    return LoadedCLIP(model, None, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


# --- All of it --------------------------------------------------------------------------------------------


def measure_all(videos: Path, clip_folder: Path | None, plan: Plan) -> dict:
    """What `docs/results/epsilon.json` holds, without where it was measured."""
    clips: dict[str, list[LoadedCLIP]] = {}
    if plan.clip_seeds:
        clips[RANDOM] = [random_clip(seed) for seed in plan.clip_seeds]
    if clip_folder is not None:
        clips[GIVEN] = [load_clip(str(clip_folder))]
    encoders = {
        (name, scope): [make_encoder(clip, scope, plan) for clip in loaded]
        for name, loaded in clips.items()
        for scope in plan.scopes
    }
    names = sorted(list_videos(videos).files)
    rows, left_out = [], {}
    with Progress(len(names), "measuring", "video", "videos") as progress:
        for name in names:
            try:
                rows += measure_video(videos / name, name, encoders, plan)
            except BadVideoError as error:
                left_out[name] = error.reason
            progress.update()
    deciding = [row for row in rows if row["num_frames"] == plan.num_frames]
    if not deciding:
        sys.exit(
            f"{videos} holds no video of {plan.num_frames} frames that can be read: there is nothing to choose from"
        )
    separations = [separation(deciding, *which) for which in encoders]
    return {
        "settings": asdict(plan),
        "left_out": left_out,
        "videos": rows,
        "separation": separations,
        "epsilon": propose(separations),
    }


def measure_video(
    video: Path, name: str, encoders: dict[tuple[str, str], list[VideoEncoder]], plan: Plan
) -> list[dict]:
    """The rows of a video, one for each CLIP and scope."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clips = make_clips(video, Path(folder), plan)
        of_size: dict[int, tuple[Tensor, Tensor]] = {}
        for (clip, scope), alike in encoders.items():
            size = alike[0].tower.image_size
            if size not in of_size:
                of_size[size] = read_clips(clips, size, plan)
            shares = torch.cat([measure(encoder, *of_size[size]) for encoder in alike])
            kinds = {
                kind: summarize(shares[:, [place for place, (is_of, _) in enumerate(clips) if is_of == kind]])
                for kind in KINDS
            }
            num_frames = int(of_size[size][1][0])  # the video itself comes first
            rows.append({"clip": clip, "scope": scope, "video": name, "num_frames": num_frames, **kinds})
    return rows


def separation(rows: Sequence[dict], clip: str, scope: str) -> dict:
    """What ε must lie between in a CLIP and a scope, with the videos that say so."""
    rows = [row for row in rows if (row["clip"], row["scope"]) == (clip, scope)]
    least = min(rows, key=lambda row: row[REAL]["largest_gap_at_least"])
    found = {
        "clip": clip,
        "scope": scope,
        REAL: {"video": least["video"], "share": least[REAL]["largest_gap_at_least"]},
    }
    for kind in (STILL, NOISY, KEYFRAMES):
        most = max(rows, key=lambda row: row[kind]["largest"])
        found[kind] = {"video": most["video"], "share": most[kind]["largest"]}
    return found


def propose(separations: Sequence[dict]) -> float | None:
    """The geometric middle, rounded to one digit, of still pictures, noisy or not, and real clips; None if they mix."""
    low = max(found[kind]["share"] for found in separations for kind in (STILL, NOISY))
    high = min(found[REAL]["share"] for found in separations)
    return float(f"{math.sqrt(low * high):.0e}") if low < high else None


# --- The table --------------------------------------------------------------------------------------------


def make_table(content: dict) -> str:
    """What `docs/method.md` says, in Markdown: what ε lies between, then each video in the joint scope."""
    of_stills = "a still picture | a noisy one | one with keyframes"
    lines = [f"| at most, at least: CLIP, scope | {of_stills} | a real clip's largest gap |", "|---|---|---|---|---|"]
    for found in content["separation"]:
        cells = [f"{found[kind]['share']:.1e} ({found[kind]['video']})" for kind in (STILL, NOISY, KEYFRAMES, REAL)]
        lines.append(f"| {found['clip']}, {found['scope']} | {' | '.join(cells)} |")
    joint = [row for row in content["videos"] if row["scope"] == "joint"]
    for clip in dict.fromkeys(row["clip"] for row in joint):
        lines += [
            "",
            f"| {clip}, joint | {of_stills} | real: largest gap | real: all gaps |",
            "|---|---|---|---|---|---|",
        ]
        for row in joint:
            if row["clip"] == clip:
                stills = " | ".join(f"{row[kind]['largest']:.1e}" for kind in (STILL, NOISY, KEYFRAMES))
                largest = spread(row[REAL], "largest_gap_at_least", "largest_gap_median", "largest")
                every = spread(row[REAL], "smallest", "median", "largest")
                lines.append(f"| {row['video']}, {row['num_frames']} | {stills} | {largest} | {every} |")
    return "\n".join(lines)


def spread(values: dict[str, float], *names: str) -> str:
    """Some of a summary's values, from the least to the greatest."""
    return " – ".join(f"{values[name]:.1e}" for name in names)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and record, or print the table of what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="real clips, at any depth")
    parser.add_argument("--clip", type=Path, metavar="FOLDER", help="an open_clip model folder: the demo's toy CLIP")
    parser.add_argument("--quick", action="store_true", help="one seed and one quality, and no ViT-B/32")
    parser.add_argument("--record", type=Path, metavar="FILE", help="what was measured (docs/results/epsilon.json)")
    parser.add_argument("--table", action="store_true", help="print what is recorded, and measure nothing")
    args = parser.parse_args(argv)
    record = args.record or RECORD
    if not args.table:
        if args.quick and args.record is None:
            parser.error("--quick is no measurement to keep: give --record, another file than the tracked one")
        if args.videos is None or not args.videos.is_dir():
            parser.error("give --videos, a folder of real clips, or --table")
        if args.quick and args.clip is None:
            parser.error("--quick measures in the CLIP that --clip names: give it")
        content = measure_all(args.videos, args.clip, QUICK if args.quick else Plan())
        content |= {"git_commit": git_commit(), "machine": describe_machine()}
        record.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(make_table(json.loads(record.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
