"""The toy world: coloured shapes that move or change size, drawn in numpy, and the words for them.

Shared by `make_toy_dataset.py` (videos of sharp frames, no trails) and `pretrain_toy_clip.py` (stills, in
which motion shows only as a trail of fading ghosts), so that the toy CLIP knows the objects of the videos,
and the words for their motions from still cues alone, as a real CLIP does. The scenes here are those of the level
`motions`; those of the harder one are in `events.py`.

Everything is vectorised over a leading axis of N drawings and takes its randomness from the generator it is
given. Coordinates are pixels, x to the right and y downwards, with pixel centres at integers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

RENDERER_VERSION = 2  # raise it whenever the same seed no longer draws the same picture

IMAGE_SIZE = 56  # 7 x 7 patches of 8 pixels, the geometry of ViT-B/32 at 224
COLOURS = {
    "red": (225, 35, 35),
    "green": (40, 190, 60),
    "blue": (45, 80, 235),
    "yellow": (240, 220, 40),
    "purple": (190, 60, 220),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "triangle", "cross")
# Each pair is one axis of change; the second motion is the first one backwards in time.
MOTION_PAIRS = (("moving left", "moving right"), ("moving up", "moving down"), ("growing", "shrinking"))
MOTIONS = tuple(motion for pair in MOTION_PAIRS for motion in pair)
GROWING, SHRINKING = MOTIONS.index("growing"), MOTIONS.index("shrinking")
SIZES = ("small", "large")
POSITIONS = (
    "at the top left", "at the top", "at the top right",
    "at the left", "in the centre", "at the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip

SMALL_RADIUS = (6.5, 8.5)
LARGE_RADIUS = (12.0, 14.0)
TRAVEL = (18.0, 23.0)  # length of a movement
PATH_CENTRE = (20.0, 35.0)  # middle of every path, along both axes and for all motions alike
ARC, ARC_SIZE = 7.0, 0.14  # height of the arcs that videos add to a path: pixels, and share of the radius
# what covers a pixel of a video: what the caption names while it moves, while it rests, and what it does not name
MOVING, RESTING, STILL, DRIFTING = "moving", "resting", "still", "drifting"
NOT_SEEN = -2  # the motion of a still whose caption names one that the picture does not show
TRAIL_OPACITY = (0.2, 0.35, 0.5, 0.7, 1.0)  # of the ghosts, oldest first

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_COLOUR_NAMES = tuple(COLOURS)


# --- words --------------------------------------------------------------------------------------------------


def object_name(colour: int, shape: int) -> str:
    return f"a {_COLOUR_NAMES[colour]} {SHAPES[shape]}"


def motion_caption(colour: int, shape: int, motion: int) -> str:
    """The caption of a video, and of a still with a trail: "a red circle moving left"."""
    return f"{object_name(colour, shape)} {MOTIONS[motion]}"


def class_caption(motion: int) -> str:
    """The class prompt for recognising motions, "something {class}", which the text tower has seen."""
    return f"something {MOTIONS[motion]}"


def position_caption(size: int, colour: int, shape: int, position: int) -> str:
    return f"a {SIZES[size]} {_COLOUR_NAMES[colour]} {SHAPES[shape]} {POSITIONS[position]}"


def all_motion_captions() -> list[str]:
    """Every video caption, colours outermost, motions innermost; all of them different."""
    return [
        motion_caption(colour, shape, motion)
        for colour in range(len(COLOURS))
        for shape in range(len(SHAPES))
        for motion in range(len(MOTIONS))
    ]


def all_position_captions() -> list[str]:
    """Sizes outermost, then colours, shapes, and positions innermost."""
    return [
        position_caption(size, colour, shape, position)
        for size in range(len(SIZES))
        for colour in range(len(COLOURS))
        for shape in range(len(SHAPES))
        for position in range(len(POSITIONS))
    ]


# --- drawing ------------------------------------------------------------------------------------------------


def _signed_distance(name: str, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Distance in pixels to the outline, negative inside; exact where it is small, corners apart."""
    if name == "circle":
        return np.sqrt(dx * dx + dy * dy) - r
    dx = np.abs(dx)
    if name == "triangle":
        return np.maximum(0.866025 * dx - 0.5 * dy, dy) - 0.6 * r
    if name == "cross":
        dy, arm = np.abs(dy), 0.32 * r
        return np.minimum(np.maximum(dx - r, dy - arm), np.maximum(dx - arm, dy - r))
    raise ValueError(f"unknown shape {name!r}")


def coverage(shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel an object covers: (N,) indices, centres and radii to (N, S, S) in [0, 1]."""
    shape, x, y, radius = (np.asarray(a) for a in (shape, x, y, radius))
    grid = np.arange(IMAGE_SIZE, dtype=np.float32)
    dx = grid - x.astype(np.float32)[:, None, None]  # (N, 1, S)
    dy = grid[:, None] - y.astype(np.float32)[:, None, None]  # (N, S, 1)
    r = radius.astype(np.float32)[:, None, None]
    covered = np.empty((len(x), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        if chosen.any():
            distance = _signed_distance(name, dx[chosen], dy[chosen], r[chosen])
            covered[chosen] = np.clip(0.5 - distance, 0.0, 1.0)
    return covered


def paint(canvas: np.ndarray, covered: np.ndarray, colour: np.ndarray) -> None:
    """Blends colours (N,) into the canvas (N, S, S, 3), in place, by coverage (N, S, S)."""
    canvas += covered[..., None] * (_PALETTE[colour][:, None, None, :] - canvas)


def texture(rng: np.random.Generator, n: int) -> np.ndarray:
    """Weakly textured dark grey backgrounds, (n, S, S, 3) in [0, 255]."""
    level = rng.uniform(45, 95, (n, 1, 1, 1))
    tint = rng.uniform(-8, 8, (n, 1, 1, 3))
    coarse = rng.uniform(-14, 14, (n, 8, 8))
    weight = _interpolation(8)  # (S, 8)
    clouds = np.einsum("ya,nab,xb->nyx", weight, coarse, weight, optimize=True)
    grain = rng.uniform(-4, 4, (n, IMAGE_SIZE, IMAGE_SIZE))
    return (level + tint + (clouds + grain)[..., None]).astype(np.float32)


def _interpolation(cells: int) -> np.ndarray:
    """Matrix (S, cells) that interpolates linearly between values on a coarse grid."""
    at = np.linspace(0, cells - 1, IMAGE_SIZE)[:, None]
    return np.clip(1 - np.abs(at - np.arange(cells)), 0, 1)


def to_pixels(canvas: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


# --- scenes -------------------------------------------------------------------------------------------------


def sample_paths(rng: np.random.Generator, motion: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths x, y and radius, each (N, steps), at constant speed, of the motions (N,).

    The middle of the path is drawn in the same way for every motion, so that where an object is says little
    about what it does.
    """
    n = len(motion)
    centre = rng.uniform(*PATH_CENTRE, (n, 2))
    travel = rng.uniform(*TRAVEL, n)
    small, large = rng.uniform(*SMALL_RADIUS, n), rng.uniform(*LARGE_RADIUS, n)

    backwards = motion % 2 == 1
    time = np.linspace(-0.5, 0.5, steps)[None, :] * np.where(backwards, -1, 1)[:, None]  # (N, steps)
    axis = (motion // 2)[:, None]
    x = centre[:, :1] - (axis == 0) * time * travel[:, None]
    y = centre[:, 1:] - (axis == 1) * time * travel[:, None]
    radius = np.where(axis == 2, small[:, None] + (0.5 + time) * (large - small)[:, None], small[:, None])
    return x, y, radius


def bend(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same paths, each (N, steps), with an arc out and back, sideways, upwards and in size, on top.

    Without it the frames of a movement, in whatever order, show its axis: positions spread along it alone. With it they
    spread every way, and only their order tells the change that goes on from those that come back. An arc is the same
    backwards, so opposite motions stay time reversals.
    """
    n, steps = x.shape
    arc = np.sin(np.pi * np.linspace(0, 1, steps)) - 0.5
    out = rng.choice([-1.0, 1.0], (3, n, 1)) * rng.uniform(0.7, 1.0, (3, n, 1)) * arc  # (3, N, steps)
    return x + ARC * out[0], y + ARC * out[1], radius * (1 + ARC_SIZE * out[2])


def place_beside(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre and radius (N,) of a small second object, clear of another one's path (N, steps)."""
    n, candidates = len(x), 48
    r = rng.uniform(*SMALL_RADIUS, n)
    at = rng.uniform(7.0, IMAGE_SIZE - 8.0, (n, candidates, 2))
    gap = np.hypot(at[:, :, None, 0] - x[:, None, :], at[:, :, None, 1] - y[:, None, :]) - radius[:, None, :]
    clearance = gap.min(axis=2) - 1.15 * r[:, None]  # (N, candidates)
    # The first clear one, not the clearest one: that would always sit in a corner.
    chosen = np.argmax(np.minimum(clearance, 0.0), axis=1)
    return at[np.arange(n), chosen, 0], at[np.arange(n), chosen, 1], r


def other_colour(rng: np.random.Generator, colour: np.ndarray) -> np.ndarray:
    """Colours (N,) that differ from the given ones."""
    return (colour + rng.integers(1, len(COLOURS), len(colour))) % len(COLOURS)


@dataclass(frozen=True)
class Video:
    """Frames (T, S, S, 3) uint8, and the indices of what is in them; no caption mentions the distractor.

    where: how much of each pixel what moves and what stands still covers, (T, S, S) in [0, 1], by `MOVING` and `STILL`.
    """

    frames: np.ndarray
    colour: int
    shape: int
    motion: int
    distractor_colour: int
    distractor_shape: int
    where: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def caption(self) -> str:
        return motion_caption(self.colour, self.shape, self.motion)


def render_pair(rng: np.random.Generator, colour: int, shape: int, pair: int, num_frames: int) -> tuple[Video, Video]:
    """A scene shown, with the two motions of `MOTION_PAIRS[pair]`; the second is the first backwards"""
    x, y, radius = bend(rng, *sample_paths(rng, np.array([2 * pair]), num_frames))
    distractor_colour = other_colour(rng, np.array([colour]))
    distractor_shape = rng.integers(0, len(SHAPES), 1)
    still = texture(rng, 1)
    beside = coverage(distractor_shape, *place_beside(rng, x, y, radius))
    paint(still, beside, distractor_colour)

    canvas = np.repeat(still, num_frames, axis=0)
    moving = coverage(np.full(num_frames, shape), x[0], y[0], radius[0])
    paint(canvas, moving, np.full(num_frames, colour))
    frames = to_pixels(canvas)
    facts = (int(distractor_colour[0]), int(distractor_shape[0]))
    where = {MOVING: moving, STILL: np.repeat(beside, num_frames, axis=0)}
    return (
        Video(frames, colour, shape, 2 * pair, *facts, where),
        Video(frames[::-1], colour, shape, 2 * pair + 1, *facts, backwards(where)),
    )


def backwards(where: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Where things are in a video that is shown backwards."""
    return {name: covered[::-1] for name, covered in where.items()}


@dataclass(frozen=True)
class Stills:
    """N captioned stills. An index is -1 where it does not apply to a picture.

    `images` (N, S, S, 3) uint8; `captions` N strings; `colour`, `shape`, `size`, `position`, `motion` (N,)
    indices of the first object; `generic` (N,) is True where the caption names a motion but no object. A
    picture has a position and a size, or a motion, or (two objects named) neither; a motion that the caption names
    and the picture does not show is `NOT_SEEN`.
    """

    images: np.ndarray
    captions: list[str]
    colour: np.ndarray
    shape: np.ndarray
    size: np.ndarray
    position: np.ndarray
    motion: np.ndarray
    generic: np.ndarray


def render_stills(rng: np.random.Generator, n: int) -> Stills:
    """Half layouts (one or two objects, position or size named), half motion trails; see `Stills`.

    Half of the trails come in threes of one colour and motion with different shapes: words for shapes take long
    to learn, since among pictures that are drawn freely few differ in shape alone.
    """
    return joined(_render_layouts(rng, n // 2), _render_trails(rng, n - n // 2))


def joined(layouts: Stills, trails: Stills) -> Stills:
    """Two batches of stills as one."""
    both = {
        name: np.concatenate([getattr(layouts, name), getattr(trails, name)])
        for name in ("images", "colour", "shape", "size", "position", "motion", "generic")
    }
    return Stills(captions=layouts.captions + trails.captions, **both)


def _render_layouts(rng: np.random.Generator, n: int) -> Stills:
    colour, shape = rng.integers(0, len(COLOURS), n), rng.integers(0, len(SHAPES), n)
    size, position = rng.integers(0, len(SIZES), n), rng.integers(0, len(POSITIONS), n)
    radius = np.where(size == 1, rng.uniform(*LARGE_RADIUS, n), rng.uniform(*SMALL_RADIUS, n))
    at = np.stack([position % 3, position // 3], axis=1)  # (n, 2), column and row
    centre = 14.5 + 13.0 * at + rng.uniform(-2.5, 2.5, (n, 2))
    second_colour, second_shape = other_colour(rng, colour), rng.integers(0, len(SHAPES), n)
    second = place_beside(rng, centre[:, :1], centre[:, 1:], radius[:, None])
    named_second, seen_second = rng.random(n) < 0.3, rng.random(n) < 0.5

    canvas = texture(rng, n)
    visible = (named_second | seen_second)[:, None, None]
    paint(canvas, visible * coverage(second_shape, *second), second_colour)
    paint(canvas, coverage(shape, centre[:, 0], centre[:, 1], radius), colour)

    captions = []
    for i in range(n):
        if not named_second[i]:
            captions.append(position_caption(size[i], colour[i], shape[i], position[i]))
        else:
            names = [object_name(colour[i], shape[i]), object_name(second_colour[i], second_shape[i])]
            captions.append(" and ".join(sorted(names)))  # one order, so that equal pictures have equal captions
    none = np.full(n, -1)
    return Stills(
        images=to_pixels(canvas),
        captions=captions,
        colour=colour,
        shape=shape,
        size=np.where(named_second, none, size),
        position=np.where(named_second, none, position),
        motion=none,
        generic=np.zeros(n, dtype=bool),
    )


def draw_subjects(
    rng: np.random.Generator, n: int, num_colours: int, num_motions: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Colour, shape and motion of the objects of N stills with a trail, and whose captions name no object: (N,) each.

    The first half come in threes of one colour and motion, see `render_stills`.
    """
    colour, shape = rng.integers(0, num_colours, n), rng.integers(0, len(SHAPES), n)
    motion = rng.integers(0, num_motions, n)
    in_threes = n // 2 // len(SHAPES) * len(SHAPES)
    leader = np.arange(in_threes) // len(SHAPES) * len(SHAPES)
    colour[:in_threes], motion[:in_threes] = colour[leader], motion[leader]
    shape[:in_threes] = np.arange(in_threes) % len(SHAPES)
    return colour, shape, motion, rng.random(n) < 0.15


def _render_trails(rng: np.random.Generator, n: int) -> Stills:
    colour, shape, motion, generic = draw_subjects(rng, n, len(COLOURS), len(MOTIONS))
    steps = len(TRAIL_OPACITY)
    x, y, radius = sample_paths(rng, motion, steps)
    distractor_colour, distractor_shape = other_colour(rng, colour), rng.integers(0, len(SHAPES), n)
    distractor = place_beside(rng, x, y, radius)
    visible = (rng.random(n) < 0.7)[:, None, None]

    canvas = texture(rng, n)
    paint(canvas, visible * coverage(distractor_shape, *distractor), distractor_colour)
    paint(canvas, trail(shape, motion, x, y, radius), colour)
    none = np.full(n, -1)
    return Stills(
        images=to_pixels(canvas),
        captions=[
            class_caption(motion[i]) if generic[i] else motion_caption(colour[i], shape[i], motion[i]) for i in range(n)
        ],
        colour=colour,
        shape=shape,
        size=none,
        position=none,
        motion=motion,
        generic=generic,
    )


def trail(shape: np.ndarray, motion: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Opacity (N, S, S) of an object and its ghosts along the path (N, steps).

    Newer ghosts cover older ones, except in a growing object, whose newest state would hide all of them:
    there each pixel keeps the opacity of the first state that reached it, a faint core in a strong rim.
    """
    growing = motion == GROWING
    opacity = np.zeros((len(x), IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    steps = x.shape[1]
    for k in range(steps):
        step = np.where(growing, steps - 1 - k, k)
        now = np.arange(len(x)), step
        target = np.array(TRAIL_OPACITY, dtype=np.float32)[step][:, None, None]
        opacity += coverage(shape, x[now], y[now], radius[now]) * (target - opacity)
    return opacity


# --- levels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """What the videos of a dataset show, and the stills that its CLIP is trained on.

    colours: how many of `COLOURS`, from the first, its objects have; they have all `SHAPES`.
    motions: in the words of the captions; the one after an even number is that one backwards.
    num_frames: of a video. clip_steps: that its CLIP is trained for.
    render_pair: from a generator, colour, shape, half an even motion and the number of frames, two videos with
    `frames`, `motion`, `caption` and `where`, the second of which is the first backwards.
    render_stills: from a generator, how many, and how much of the training is over (of 1), `Stills`.
    renderer_version: to be raised whenever the same seed no longer draws the same pictures.
    """

    name: str
    colours: int
    motions: tuple[str, ...]
    num_frames: int
    clip_steps: int
    render_pair: Callable[[np.random.Generator, int, int, int, int], tuple[Any, Any]]
    render_stills: Callable[[np.random.Generator, int, float], Stills]
    renderer_version: int

    @property
    def objects(self) -> list[str]:
        """The names of its objects, shapes innermost."""
        return [object_name(colour, shape) for colour in range(self.colours) for shape in range(len(SHAPES))]

    @property
    def captions(self) -> list[str]:
        """Every video caption, motions innermost; all of them different."""
        return [f"{thing} {motion}" for thing in self.objects for motion in self.motions]

    @property
    def class_captions(self) -> list[str]:
        """The class prompts for recognising its motions, "something {class}", which its CLIP has seen."""
        return [f"something {motion}" for motion in self.motions]


MOTIONS_LEVEL = Level(
    name="motions",
    colours=len(COLOURS),
    motions=MOTIONS,
    num_frames=24,
    clip_steps=1000,
    render_pair=render_pair,
    render_stills=lambda rng, n, done: render_stills(rng, n),
    renderer_version=RENDERER_VERSION,
)
