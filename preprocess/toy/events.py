"""The toy world's harder level, `events`: short events, at a random time, of a small object among distractors.

An object rests, and once or twice in the clip something happens to it: it moves left or right, or grows or shrinks.
An event goes from half of its change on one side of the resting state to half of it on the other, and before and after
it the object is gone for a moment. So what rests is the middle of every event alike, a single frame of an event may be
one of its opposite, and only the order of the few frames of an event tells what it is. Beside it stands one object, and
another drifts through the whole clip, in colours that no caption names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from preprocess.toy import shapes as toy

RENDERER_VERSION = 1  # raise it whenever the same seed no longer draws the same picture
NUM_COLOURS = 3  # of those that objects have; distractors have the others
LEFT, RIGHT, GROW, SHRINK = "moving left", "moving right", "growing", "shrinking"
BACKWARDS = {LEFT: RIGHT, RIGHT: LEFT, GROW: SHRINK, SHRINK: GROW}
# Every event alone, and every two that change different things in either order.
_FORWARDS = ((LEFT,), (GROW,), (LEFT, GROW), (GROW, LEFT), (LEFT, SHRINK), (SHRINK, LEFT))
STORIES = tuple(story for first in _FORWARDS for story in (first, tuple(BACKWARDS[event] for event in reversed(first))))

CENTRE_X, CENTRE_Y = (23.0, 32.0), (13.0, 42.0)  # of the resting object
TRAVEL = (25.0, 29.0)  # length of a movement
RADIUS, GROWTH = (6.3, 7.3), (6.5, 7.5)  # of the resting object, and the change of it
EVENT, UNSEEN = 1 / 4, 1 / 12  # of the clip: how long an event takes, and how long the object is gone before and after
REST = 2  # frames, at least, before and after
DRIFT = (12.0, 20.0)  # pixels, over the clip
DISTRACTOR_RADIUS = (5.0, 6.5)
RESTING_FROM = 0.6  # of the training of its CLIP
EARLIER = (0.25, 0.6)  # opacity of the oldest and of the newest ghost of the earlier of two events


def words(story: tuple[str, ...]) -> str:
    """ "moving left", or "moving left, then growing"."""
    return ", then ".join(story)


def sample_starts(rng: np.random.Generator, events: int, num_frames: int) -> tuple[int, ...]:
    """First frames of the events of a clip, one `UNSEEN` apart; every time of the whole is as likely."""
    length, unseen = int(num_frames * EVENT), int(num_frames * UNSEEN)
    total = unseen + events * (length + unseen)
    first = int(rng.integers(REST, num_frames - total - REST + 1)) + unseen
    return tuple(first + k * (length + unseen) for k in range(events))


def event_path(event: str, steps: int, travel: np.ndarray, growth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What an event adds to x and radius, (N, steps) each; `travel` and `growth` (N,) are its whole changes."""
    time = np.linspace(-0.5, 0.5, steps)
    along, across = {LEFT: (-1, 0), RIGHT: (1, 0), GROW: (0, 1), SHRINK: (0, -1)}[event]
    return along * travel[:, None] * time, across * growth[:, None] * time


@dataclass(frozen=True)
class Resting:
    """Objects at rest and what their events change: (N,) each, pixels."""

    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray
    travel: np.ndarray
    growth: np.ndarray

    @staticmethod
    def sample(rng: np.random.Generator, n: int) -> "Resting":
        """In the same way whatever will happen."""
        return Resting(
            *(rng.uniform(*bounds, n) for bounds in (CENTRE_X, CENTRE_Y, RADIUS, TRAVEL, GROWTH)),
        )

    def reach(self, story: tuple[str, ...], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and radius (n, steps) of all that the objects of the rows pass through."""
        parts = [event_path(event, 5, self.travel[rows], self.growth[rows]) for event in story]
        x, radius = (np.concatenate(change, axis=1) for change in zip(*parts, strict=True))
        return x + self.x[rows, None], np.broadcast_to(self.y[rows, None], x.shape), radius + self.radius[rows, None]


def place_drifting(
    rng: np.random.Generator, x: np.ndarray, y: np.ndarray, radius: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A second object on a straight way, clear of another's path (N, k) if it can be: x, y (N, steps), radius (N,)."""
    n, candidates = len(x), 48
    r = rng.uniform(*DISTRACTOR_RADIUS, n)
    angle, length = rng.uniform(0, 2 * np.pi, (n, candidates)), rng.uniform(*DRIFT, (n, candidates))
    half = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * length[..., None] / 2  # (n, candidates, 2)
    margin = 7.0 + np.abs(half)
    middle = margin + rng.random((n, candidates, 2)) * (toy.IMAGE_SIZE - 1 - 2 * margin)
    clearance = np.full((n, candidates), np.inf)
    for part in np.linspace(-1, 1, 5):
        at = middle + part * half
        gap = np.hypot(at[..., :1] - x[:, None], at[..., 1:] - y[:, None]) - radius[:, None]  # (n, candidates, k)
        clearance = np.minimum(clearance, gap.min(axis=2) - 1.15 * r[:, None])
    chosen = np.arange(n), np.argmax(np.minimum(clearance, 0.0), axis=1)
    time = np.linspace(-1, 1, steps)
    way = middle[chosen][:, None] + half[chosen][:, None] * time[:, None]  # (n, steps, 2)
    return way[..., 0], way[..., 1], r


@dataclass(frozen=True)
class EventVideo:
    """Frames (T, S, S, 3) uint8, and what is in them.

    colour, shape, motion: indices; motion is one of `STORIES`. starts: the first frame of each event.
    distractor_colours: of the still and of the drifting one.
    where: how much of each pixel each of them covers, (T, S, S) in [0, 1], by `shapes.MOVING`, `RESTING`, `STILL`
    and `DRIFTING`; the object that the caption names moves in its events and rests otherwise.
    """

    frames: np.ndarray
    colour: int
    shape: int
    motion: int
    starts: tuple[int, ...]
    distractor_colours: tuple[int, int]
    where: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def caption(self) -> str:
        return f"{toy.object_name(self.colour, self.shape)} {words(STORIES[self.motion])}"


def render_pair(
    rng: np.random.Generator, colour: int, shape: int, pair: int, num_frames: int
) -> tuple[EventVideo, EventVideo]:
    """A clip of `STORIES[2 * pair]`, and the same clip backwards, which is one of `STORIES[2 * pair + 1]`."""
    story, length, unseen = STORIES[2 * pair], int(num_frames * EVENT), int(num_frames * UNSEEN)
    resting = Resting.sample(rng, 1)
    starts = sample_starts(rng, len(story), num_frames)
    x, y, radius = (np.repeat(value, num_frames) for value in (resting.x, resting.y, resting.radius))
    visible = np.ones((num_frames, 1, 1), dtype=np.float32)
    visible[starts[0] - unseen : starts[-1] + length + unseen] = 0
    moves = np.zeros_like(visible)
    for event, start in zip(story, starts, strict=True):
        visible[start : start + length] = moves[start : start + length] = 1
        along, across = event_path(event, length, resting.travel, resting.growth)
        x[start : start + length] += along[0]
        radius[start : start + length] += across[0]

    reach = resting.reach(story, np.array([0]))
    colours, shapes = rng.integers(NUM_COLOURS, len(toy.COLOURS), 2), rng.integers(0, len(toy.SHAPES), 2)
    still = toy.texture(rng, 1)
    beside = toy.coverage(shapes[:1], *toy.place_beside(rng, *reach))
    toy.paint(still, beside, colours[:1])
    canvas = np.repeat(still, num_frames, axis=0)
    way_x, way_y, r = place_drifting(rng, *reach, num_frames)
    drifting = toy.coverage(np.full(num_frames, shapes[1]), way_x[0], way_y[0], np.repeat(r, num_frames))
    toy.paint(canvas, drifting, np.full(num_frames, colours[1]))
    covered = visible * toy.coverage(np.full(num_frames, shape), x, y, radius)
    toy.paint(canvas, covered, np.full(num_frames, colour))

    frames, facts = toy.to_pixels(canvas), (int(colours[0]), int(colours[1]))
    backwards = tuple(num_frames - start - length for start in reversed(starts))
    where = {
        toy.MOVING: moves * covered,
        toy.RESTING: (1 - moves) * covered,
        toy.STILL: np.repeat(beside, num_frames, axis=0),
        toy.DRIFTING: drifting,
    }
    return (
        EventVideo(frames, colour, shape, 2 * pair, starts, facts, where),
        EventVideo(frames[::-1], colour, shape, 2 * pair + 1, backwards, facts, toy.backwards(where)),
    )


def render_stills(rng: np.random.Generator, n: int, done: float) -> toy.Stills:
    """Layouts (one object with its size and position), trails of events (over half), and later objects at rest.

    `done` is how much of the training is over, of 1. From the start on, objects at rest would keep trails to the left
    and to the right from being told apart.

    Every picture has none to two distractors. Objects at rest have captions of events that are not to be seen in them,
    as photographs often have: so the objects of sharp frames are known under the captions of the videos. Of two events
    the earlier one has left the fainter trail, and the trails are joined: what moves and then grows does so where it
    has come to.
    """
    if done < RESTING_FROM:
        return toy.joined(_render_layouts(rng, n // 3), _render_trails(rng, n - n // 3))
    layouts, resting = n // 4, n // 8
    pictures = toy.joined(_render_layouts(rng, layouts), _render_resting(rng, resting))
    return toy.joined(pictures, _render_trails(rng, n - layouts - resting))


def _paint_distractors(
    rng: np.random.Generator, canvas: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> None:
    """Adds each of two distractors to about every other picture, clear of what moves along (N, k), in place."""
    for _ in range(2):
        colour, shape = rng.integers(NUM_COLOURS, len(toy.COLOURS), len(x)), rng.integers(0, len(toy.SHAPES), len(x))
        visible = (rng.random(len(x)) < 0.6)[:, None, None]
        toy.paint(canvas, visible * toy.coverage(shape, *toy.place_beside(rng, x, y, radius)), colour)


def _render_layouts(rng: np.random.Generator, n: int) -> toy.Stills:
    colour, shape = rng.integers(0, NUM_COLOURS, n), rng.integers(0, len(toy.SHAPES), n)
    size, position = rng.integers(0, len(toy.SIZES), n), rng.integers(0, len(toy.POSITIONS), n)
    radius = np.where(size == 1, rng.uniform(*toy.LARGE_RADIUS, n), rng.uniform(*toy.SMALL_RADIUS, n))
    centre = 14.5 + 13.0 * np.stack([position % 3, position // 3], axis=1) + rng.uniform(-2.5, 2.5, (n, 2))
    canvas = toy.texture(rng, n)
    _paint_distractors(rng, canvas, centre[:, :1], centre[:, 1:], radius[:, None])
    toy.paint(canvas, toy.coverage(shape, centre[:, 0], centre[:, 1], radius), colour)
    return toy.Stills(
        images=toy.to_pixels(canvas),
        captions=[toy.position_caption(size[i], colour[i], shape[i], position[i]) for i in range(n)],
        colour=colour,
        shape=shape,
        size=size,
        position=position,
        motion=np.full(n, -1),
        generic=np.zeros(n, dtype=bool),
    )


def _render_resting(rng: np.random.Generator, n: int) -> toy.Stills:
    colour, shape, motion, _ = toy.draw_subjects(rng, n, NUM_COLOURS, len(STORIES))
    resting, canvas = Resting.sample(rng, n), toy.texture(rng, n)
    _paint_distractors(rng, canvas, resting.x[:, None], resting.y[:, None], resting.radius[:, None])
    toy.paint(canvas, toy.coverage(shape, resting.x, resting.y, resting.radius), colour)
    none = np.full(n, -1)
    return toy.Stills(
        images=toy.to_pixels(canvas),
        captions=[f"{toy.object_name(colour[i], shape[i])} {words(STORIES[motion[i]])}" for i in range(n)],
        colour=colour,
        shape=shape,
        size=none,
        position=none,
        motion=np.full(n, toy.NOT_SEEN),
        generic=np.zeros(n, dtype=bool),
    )


def _render_trails(rng: np.random.Generator, n: int) -> toy.Stills:
    colour, shape, motion, generic = toy.draw_subjects(rng, n, NUM_COLOURS, len(STORIES))
    resting, steps = Resting.sample(rng, n), len(toy.TRAIL_OPACITY)
    canvas = toy.texture(rng, n)
    opacity = np.zeros((n, toy.IMAGE_SIZE, toy.IMAGE_SIZE), dtype=np.float32)
    for number, story in enumerate(STORIES):
        rows = np.flatnonzero(motion == number)
        if not len(rows):
            continue
        part = canvas[rows]
        _paint_distractors(rng, part, *resting.reach(story, rows))
        canvas[rows] = part
        for place, event in enumerate(story):
            along, across = event_path(event, steps, resting.travel[rows], resting.growth[rows])
            if len(story) == 2 and event in (GROW, SHRINK):
                other, _ = event_path(story[1 - place], 2, resting.travel[rows], resting.growth[rows])
                along = along + other[:, -place, None]  # the end of the movement before, or the start of the next
            x, radius = resting.x[rows, None] + along, resting.radius[rows, None] + across
            y = np.repeat(resting.y[rows, None], steps, axis=1)
            shown = toy.trail(shape[rows], np.full(len(rows), toy.MOTIONS.index(event)), x, y, radius)
            if place < len(story) - 1:
                oldest, (faint, strong) = toy.TRAIL_OPACITY[0], EARLIER
                edge = np.minimum(shown / oldest, 1)  # 1 where any ghost is
                shown = edge * (faint + (strong - faint) * (np.maximum(shown, oldest) - oldest) / (1 - oldest))
            opacity[rows] = np.maximum(opacity[rows], shown)
    toy.paint(canvas, opacity, colour)
    stories = [words(story) for story in STORIES]
    none = np.full(n, -1)
    return toy.Stills(
        images=toy.to_pixels(canvas),
        captions=[
            f"something {stories[motion[i]]}"
            if generic[i]
            else f"{toy.object_name(colour[i], shape[i])} {stories[motion[i]]}"
            for i in range(n)
        ],
        colour=colour,
        shape=shape,
        size=none,
        position=none,
        motion=motion,
        generic=generic,
    )


EVENTS_LEVEL = toy.Level(
    name="events",
    colours=NUM_COLOURS,
    motions=tuple(map(words, STORIES)),
    num_frames=48,
    clip_steps=1500,
    render_pair=render_pair,
    render_stills=render_stills,
    renderer_version=RENDERER_VERSION,
)
LEVELS = {level.name: level for level in (toy.MOTIONS_LEVEL, EVENTS_LEVEL)}
