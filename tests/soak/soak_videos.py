"""Damaged videos by the hundred and decodes by the thousand: does the video reader stay up, honest and small?

Two parts of the soak test. `soak_mutations` flips, cuts and splices bytes of real containers and reads what comes out:
nothing may crash or hang the process that reads, and no clip may pass as good where a decoder reports an error.
`measure_growth` decodes good and bad clips over and over and measures the memory of the process that reads and of the
child that decodes for it.

Reading and judging happen in processes of their own, so that what they should survive can be seen from outside.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np

from dataloaders.video import reader as video_reader
from dataloaders.video.decoding import BadVideoError
from dataloaders.video.reader import DecodingSettings, VideoReader
from dataloaders.video.sampling import FrameSampler
from helpers.paths import ROOT, SHARED_DATA

REAL_CLIPS = SHARED_DATA / "videos"
LARGEST_REAL_CLIP = 1_500_000  # bytes
DAMAGED_REAL_CLIPS = {"corrupted.mp4"}
REAL_SHARE = 1 / 3  # of the mutated clips, where there are real ones: they take longer than the small ones
NUM_FRAMES = 8  # read of each clip
TIME_LIMIT = 20.0  # seconds for one read of a mutated clip; the small clips take milliseconds, the real ones a few s
# seconds after which the process that reads hangs: two tries of a clip, one of an intact one, two new children
PATIENCE = 3 * TIME_LIMIT + 2 * video_reader.START_LIMIT
ENDS = 4_000  # bytes at either end of a file that hold most headers and indexes
BAD_SHARE = 1 / 4  # of the decodes in the measurement of memory
CHILD_WARM_UP = 100  # decodes, of a child that is replaced long before the reader's warm-up ends
MB = 1e6  # bytes


# --- Clips ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """How a small clip is written: codec, the codec's and the container's options, and whether it has sound."""

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=dict)
    b_frames: int = 0
    container_options: dict[str, str] = field(default_factory=dict)
    sound: bool = False


CLIPS = {
    "b_frames.mp4": Clip(b_frames=3),
    "faststart.mp4": Clip(b_frames=2, container_options={"movflags": "+faststart"}),
    "sound.mp4": Clip(b_frames=2, sound=True),
    "mpeg4.avi": Clip("mpeg4"),
    "h264.mkv": Clip(b_frames=2),
    "vp9.webm": Clip("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "vp8.webm": Clip("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "h264.mov": Clip(b_frames=1),
}


def make_sources(folder: str | Path) -> list[Path]:
    """Intact clips to mutate: small ones in several containers and codecs, written to `folder`, then the real ones.

    The small ones are the same bytes in every call. The real ones are those of ../shared/data/videos that are not too
    large, where that folder is there; they stay where they are.
    """
    return make_small_clips(folder) + real_clips()


def make_small_clips(folder: str | Path) -> list[Path]:
    """Clips of a second or less, of a few kilobytes each."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [write_clip(folder / name, clip) for name, clip in CLIPS.items()]


def real_clips() -> list[Path]:
    """Intact clips that were not made here, none where there are none."""
    paths = sorted(REAL_CLIPS.glob("*")) if REAL_CLIPS.is_dir() else []
    return [
        path
        for path in paths
        if path.suffix.lower() in {".mp4", ".avi", ".mkv", ".mov", ".webm"}
        and path.name not in DAMAGED_REAL_CLIPS
        and path.stat().st_size < LARGEST_REAL_CLIP
    ]


def write_clip(path: Path, clip: Clip, frames: int = 24, width: int = 128, height: int = 64) -> Path:
    """A drifting texture at 25 frames a second: every part of every picture has something that damage can change."""
    texture = np.random.default_rng(0).integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8)
    texture = texture.repeat(8, axis=0).repeat(8, axis=1)  # (h/8, w/4, 3) -> (h, 2w, 3)
    # "bitexact" leaves out what differs from run to run: the identity that Matroska draws for a file
    options = clip.container_options | {"fflags": "+bitexact"}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(clip.codec, rate=25, options=clip.options)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 10
        stream.codec_context.thread_count = 1
        stream.max_b_frames = clip.b_frames
        sound = container.add_stream("aac", rate=16_000, layout="mono") if clip.sound else None
        for index in range(frames):
            picture = np.ascontiguousarray(texture[:, 3 * index : 3 * index + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            if sound is not None:
                container.mux(sound.encode(tone(16_000 // 25, index)))
        for each in filter(None, (stream, sound)):
            container.mux(each.encode())
    return path


def tone(samples: int, index: int) -> av.AudioFrame:
    """The `index`-th piece, of `samples` samples at 16 kHz, of a tone of 440 Hz."""
    times = np.arange(index * samples, (index + 1) * samples) / 16_000
    frame = av.AudioFrame.from_ndarray(np.sin(2 * np.pi * 440 * times, dtype=np.float32)[None], "fltp", "mono")
    frame.sample_rate, frame.pts = 16_000, index * samples
    return frame


# --- Mutations --------------------------------------------------------------------------------------------


def mutate(data: bytes, rng: np.random.Generator, other: bytes = b"") -> tuple[bytes, str]:
    """Damage a file: what comes out, and of which kind it is (flip, cut or splice, and what exactly).

    Two places of three lie in the first or last kilobytes. `other`: a file whose bytes may be inserted.
    """
    kinds = {"flip": flip, "cut": cut, "cut end": cut_end, "splice copy": splice_copy, "splice insert": splice_insert}
    names = ["flip", "flip", "cut", "cut end", "splice copy", "splice insert"]
    name = names[rng.integers(len(names))]
    return kinds[name](data, rng, other or data), name


def flip(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Flip 1 to 20 bits, all of them near one end of the file or anywhere."""
    low, high = region(len(data), rng)
    damaged = bytearray(data)
    for _ in range(rng.integers(1, 21)):
        damaged[rng.integers(low, high)] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def cut(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Take a run of bytes out."""
    start, length = place(len(data), rng), run_length(len(data), rng)
    return data[:start] + data[start + length :]


def cut_end(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Let the file break off, as a download that was interrupted."""
    return data[: max(1, place(len(data), rng))]


def splice_copy(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Copy a run of bytes over another place; the length stays."""
    source, target = place(len(data), rng), place(len(data), rng)
    run = data[source : source + run_length(len(data), rng)][: len(data) - target]
    return data[:target] + run + data[target + len(run) :]


def splice_insert(data: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Insert a run of another file's bytes."""
    source, target = place(len(other), rng), place(len(data), rng)
    return data[:target] + other[source : source + run_length(len(other), rng)] + data[target:]


def region(size: int, rng: np.random.Generator) -> tuple[int, int]:
    """Where to damage: the first bytes of a file, its last, or all, as (from, up to)."""
    ends = min(ENDS, size)
    return [(0, ends), (size - ends, size), (0, size)][rng.integers(3)]


def place(size: int, rng: np.random.Generator) -> int:
    return int(rng.integers(*region(size, rng)))


def run_length(size: int, rng: np.random.Generator) -> int:
    """From one byte to a third of the file, every order of magnitude as likely as the next."""
    return int(np.exp(rng.uniform(0, np.log(max(2, size / 3)))))


@dataclass(frozen=True)
class Mutant:
    """A damaged clip: its file's content, the kind of damage, and a name that says how to make it again."""

    name: str
    data: bytes
    kind: str
    container: str


def make_mutant(sources: list[Path], seed: int, index: int, real: int = 0) -> Mutant:
    """The `index`-th damaged clip of a seed; the last `real` of the `sources` are the real clips.

    The same seed, index and sources make the same bytes.
    """
    rng = np.random.default_rng([seed, index])
    small = sources[: len(sources) - real]
    group = sources[-real:] if real and (not small or rng.random() < REAL_SHARE) else small
    source, other = group[rng.integers(len(group))], sources[rng.integers(len(sources))]
    data, kind = mutate(source.read_bytes(), rng, other.read_bytes())
    name = f"seed {seed}, number {index}: {kind} of {source.name}"
    return Mutant(name, data, kind, source.suffix.lower()[1:])


@dataclass(frozen=True)
class MutationCounts:
    """What came of reading damaged clips.

    Attributes:
        tried: clips read.
        good: gave frames.
        bad: were refused as damaged.
        hung: took the decoding child longer than the time limit, which ended it. Contained: refused as bad.
        crashed: crashed the decoding child, twice. Contained: refused as bad.
        uncontained: (name, how) of those that crashed or hung the process that asked, or that changed the frames of an
            intact clip read after them; must be empty. Counted apart from the four outcomes above.
        by_container, by_kind: these outcomes by the file's suffix and by the kind of damage, {"mp4": {"good": 3}}.
        wrongly_good: (name, why) of those that gave frames although a strict decoder reports an error.
        unjudged: of the good, those that crash or hang the strict decoder, which has no opinion then.
        slowest: seconds that the longest read took.
        seconds: of the whole run.
    """

    tried: int
    good: int
    bad: int
    hung: int
    crashed: int
    uncontained: list[tuple[str, str]]
    by_container: dict[str, dict[str, int]]
    by_kind: dict[str, dict[str, int]]
    wrongly_good: list[tuple[str, str]]
    unjudged: int
    slowest: float
    seconds: float


def soak_mutations(count: int, seed: int, folder: str | Path) -> MutationCounts:
    """Read `count` damaged clips, made from `make_sources` by `seed`; `folder` is for the files that this takes.

    Raises RuntimeError where an intact clip is refused, by the reader or by the strict decoder: what they say about
    damaged ones would mean nothing.
    """
    start, folder = time.monotonic(), Path(folder)
    sources, real = make_sources(folder / "sources"), len(real_clips())
    outcomes: Counter[str] = Counter()
    by_container: dict[str, Counter[str]] = {}
    by_kind: dict[str, Counter[str]] = {}
    uncontained, wrongly_good, slowest = [], [], 0.0
    with Helper("serve_reads") as reader, Helper("serve_judgements") as judge:
        check_sources(sources, reader, judge)
        for index in range(count):
            mutant = make_mutant(sources, seed, index, real)
            path = folder / f"mutant.{mutant.container}"
            path.write_bytes(mutant.data)
            began = time.monotonic()
            outcome, reason = read_apart(reader, path, intact=sources[index % len(CLIPS)])
            slowest = max(slowest, time.monotonic() - began)
            if outcome == "uncontained":
                uncontained.append((mutant.name, reason))
            if outcome == "good":
                opinion = judge_apart(judge, path)
                outcomes["unjudged"] += opinion is None
                if opinion:
                    wrongly_good.append((mutant.name, opinion))
            outcomes[outcome] += 1
            by_container.setdefault(mutant.container, Counter())[outcome] += 1
            by_kind.setdefault(mutant.kind, Counter())[outcome] += 1
            path.unlink()
    return MutationCounts(
        tried=count,
        **{outcome: outcomes[outcome] for outcome in ("good", "bad", "hung", "crashed", "unjudged")},
        uncontained=uncontained,
        by_container={key: dict(by_container[key]) for key in sorted(by_container)},
        by_kind={key: dict(by_kind[key]) for key in sorted(by_kind)},
        wrongly_good=wrongly_good,
        slowest=slowest,
        seconds=time.monotonic() - start,
    )


def check_sources(sources: list[Path], reader: Helper, judge: Helper) -> None:
    """Raise RuntimeError unless both take every source for good."""
    for source in sources:
        outcome, reason = read_apart(reader, source, intact=source)
        if outcome != "good":
            raise RuntimeError(f"{source} is intact and read as {outcome}: {reason}")
        if opinion := judge_apart(judge, source):
            raise RuntimeError(f"{source} is intact and judged damaged: {opinion}")


def read_apart(reader: Helper, path: Path, intact: Path) -> tuple[str, str]:
    """How reading a clip, then an intact one, ends (good, bad, hung, crashed or uncontained), and why not good."""
    try:
        answer = reader.ask({"path": str(path), "intact": str(intact)}, PATIENCE)
    except HelperLost as lost:
        return "uncontained", str(lost)
    return answer["outcome"], answer["reason"]


def judge_apart(judge: Helper, path: Path) -> str | None:
    """The first error that the strict decoder reports, "" for none, None where it has no opinion."""
    try:
        return judge.ask({"path": str(path)}, PATIENCE)["error"]
    except HelperLost:
        return None


# --- What runs in processes of their own ------------------------------------------------------------------


class HelperLost(Exception):
    """A process that should answer crashed or hung; the message says which."""


class Helper:
    """A process that runs one of this module's `serve_` functions, and is started anew when it is lost."""

    def __init__(self, function: str):
        self._function = function
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ask(self, request: dict, patience: float) -> dict:
        """The answer to a request. Raises HelperLost where it does not come within `patience` seconds."""
        process = self._process = self._process or self._start()
        with suppress(BrokenPipeError):  # its answer is its exit code then
            process.stdin.write(json.dumps(request).encode() + b"\n")
        if not select.select([process.stdout], [], [], patience)[0]:
            self.__exit__()
            raise HelperLost(f"no answer within {patience:g} seconds")
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            code = process.wait()
            self.__exit__()
            raise HelperLost(f"ended with exit code {code}")
        return json.loads(line)

    def _start(self) -> subprocess.Popen:
        here = Path(__file__).resolve().parent
        folders = [str(here), str(here.parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            [sys.executable, "-c", f"import soak_videos; soak_videos.{self._function}()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders))},
        )


def serve(answer: Callable[[dict], dict]) -> None:
    """Answer requests, lines of JSON, until the standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


def serve_reads() -> None:
    """Read clips as a data loader's worker does, and after each an intact one, which must not change by it."""
    reader = VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT))
    intact: dict[str, np.ndarray] = {}

    def read(path: str) -> np.ndarray:
        return reader.read(path, NUM_FRAMES, FrameSampler())

    def answer(request: dict) -> dict:
        outcome, reason = "good", ""
        try:
            read(request["path"])
        except BadVideoError as error:
            outcome, reason = outcome_of(error), error.reason
        try:
            frames = read(request["intact"])
            same = np.array_equal(frames, intact.setdefault(request["intact"], frames))
        except BadVideoError:
            same = False
        if not same:
            outcome, reason = "uncontained", f"changes how {request['intact']} is read afterwards"
        return {"outcome": outcome, "reason": reason}

    serve(answer)


def outcome_of(error: BadVideoError) -> str:
    """Why a clip was refused: hung, crashed, or just bad."""
    if error.reason.startswith("not decoded within"):
        return "hung"
    return "crashed" if error.reason.startswith("the decoder crashed") else "bad"


def serve_judgements() -> None:
    """Judge clips by the strict decoder."""
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    serve(lambda request: {"error": find_error(request["path"])})


def find_error(path: str | Path) -> str:
    """The first error that libav reports, by any way it has, in decoding the pictures of a file; "" for none.

    What libav logs is seen where `serve_judgements` has asked for it; the rest everywhere. The judgement shares nothing
    with the reader but libav itself: no frame count, no second library, no patience with the end.
    """
    with av.logging.Capture() as reports:
        try:
            decode_strictly(path)
        except Exception as error:  # any failure, of whichever kind, is an error that the decoder reports
            reports.append((av.logging.ERROR, type(error).__name__, str(error)))
    errors = [f"{name}: {message.strip()}" for level, name, message in reports if level <= av.logging.ERROR]
    return errors[0] if errors else ""


def decode_strictly(path: str | Path) -> None:
    """Decode all pictures of a file. Raises ValueError for a corrupt one, and what PyAV raises."""
    with av.open(os.path.abspath(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("no video stream")
        stream.codec_context.thread_count = 1  # what is logged elsewhere would not be captured
        frames = 0
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise ValueError(f"corrupt packet after {frames} frames")
            if packet.size == 0 and packet.dts is not None:
                continue  # "show the last frame again", which a decoder would take for the end
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise ValueError(f"frame {frames} is corrupt")
                frames += 1
        if frames == 0:
            raise ValueError("no frame")


# --- Memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """How much memory decoding took, beyond what it had after a warm-up; 1 MB is 10^6 bytes, of resident memory.

    Attributes:
        decodes: videos read, a share of them bad.
        seconds: that this took.
        worker_growth_mb: of the process that reads, from the end of its warm-up to the end.
        child_growth_mb: of the child that decodes, from the end of its own warm-up to its largest; of the child that
            grew most.
        children: that decoded, one after the other.
    """

    decodes: int
    seconds: float
    worker_growth_mb: float
    child_growth_mb: float
    children: int


def measure_growth(decodes: int, seed: int, folder: str | Path) -> Growth:
    """Read small clips, good and bad ones in a random order, `decodes` times by one reader in a new process.

    Raises RuntimeError where that process ends without an answer, or a clip is not read as it should be.
    """
    good = make_small_clips(Path(folder) / "sources")
    request = {
        "decodes": decodes,
        "seed": seed,
        "good": [str(path) for path in good],
        "bad": [str(path) for path in make_bad_clips(good, Path(folder) / "bad")],
    }
    with Helper("serve_growth") as worker:
        try:
            return Growth(**worker.ask(request, patience=60 + decodes))
        except HelperLost as lost:
            raise RuntimeError(f"the process that reads was lost: {lost}") from lost


def make_bad_clips(good: list[Path], folder: Path) -> list[Path]:
    """What fails in reading, in several ways: files that break off, have other bytes within, are no video, or missing.

    Each kind fails in another place of the libraries, and every such place may forget to give back what it holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in good:
        data = source.read_bytes()
        half = len(data) // 2
        damaged = {"short": data[:half], "header": data[:100], "zeros": data[: half - 1000] + bytes(2000) + data[half:]}
        for name, content in damaged.items():
            paths.append(folder / f"{name}_{source.name}")
            paths[-1].write_bytes(content)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("no video at all\n" * 100)
    return [*paths, folder / "empty.mp4", folder / "text.mp4", folder / "missing.mp4"]


def serve_growth() -> None:
    """Measure growth in this process, which has nothing else to do."""
    serve(lambda request: asdict(grow(**request)))


def grow(
    decodes: int, seed: int, good: list[str], bad: list[str], command: tuple[str, ...] = video_reader.COMMAND
) -> Growth:
    """`measure_growth` within this process, of the given clips; `command` is the reader's.

    Raises RuntimeError where a good clip is refused, or no bad one is.
    """
    rng = np.random.default_rng(seed)
    warm_up = min(1_000 if decodes >= 5_000 else 500, decodes // 2)
    reader = VideoReader(DecodingSettings(video_time_limit=TIME_LIMIT), command=command)
    warm, child_warm, child_growth, refused = 0, 0, 0, 0
    children: Counter[int] = Counter()  # decodes, by process
    start = time.monotonic()
    for index in range(decodes):
        paths = bad if bad and (not good or rng.random() < BAD_SHARE) else good
        refused += refuses(reader, paths[rng.integers(len(paths))], paths is good)
        if index + 1 == warm_up:
            warm = resident("self")
        if reader._child is not None:  # else this decode was the child's last
            child = reader._child._process.pid
            children[child] += 1
            now = resident(child)
            if children[child] == CHILD_WARM_UP:
                child_warm = now
            if children[child] >= CHILD_WARM_UP:
                child_growth = max(child_growth, now - child_warm)
    if bad and not refused:
        raise RuntimeError("no bad clip was refused")
    growth = (resident("self") - warm) / MB
    reader.close()
    return Growth(decodes, time.monotonic() - start, growth, child_growth / MB, len(children))


def refuses(reader: VideoReader, path: str, is_good: bool) -> bool:
    """Whether the reader refuses a clip. Raises RuntimeError where it refuses a good one."""
    try:
        reader.read(path, NUM_FRAMES, FrameSampler())
    except BadVideoError as error:
        if is_good:
            raise RuntimeError(f"an intact clip is refused: {error}") from error
        return True
    return False


def resident(process: int | str) -> int:
    """Bytes of a process's memory that are in the machine's."""
    pages = Path(f"/proc/{process}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure_leak(library: str, bad: bool, decodes: int, folder: str | Path) -> float:
    """MB that one child, never replaced, grows in 1,000 decodes by one library, "decord" or "OpenCV".

    bad: decode bad clips, else good ones. What MAX_DECODES in dataloaders/video/reader.py rests on.
    """
    good = make_small_clips(Path(folder) / "sources")
    code = (
        "from dataloaders.video import decoding, reader; libraries = decoding._libraries(); "
        f"decoding._libraries = lambda: {{{library!r}: libraries[{library!r}]}}; reader.serve()"
    )
    clips = ([], make_bad_clips(good, Path(folder) / "bad")) if bad else (good, [])
    limit, video_reader.MAX_DECODES = video_reader.MAX_DECODES, decodes + 1
    try:
        growth = grow(decodes, 0, *([str(path) for path in paths] for paths in clips), (sys.executable, "-c", code))
    finally:
        video_reader.MAX_DECODES = limit
    return growth.child_growth_mb / (decodes - CHILD_WARM_UP) * 1_000
