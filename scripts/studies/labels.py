"""Labels of points in a picture that cover neither each other nor a point, nor anything else that is named."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from common.errors import UserError

DIRECTIONS, RINGS = 24, 60  # in which, and how far away, a place is looked for
STEP = 4.0  # pixels between two rings
MARGIN = 2.0  # pixels around a label
NEAR = 14.0  # pixels, from where on a line leads to the point
PIECE = 8.0  # pixels of a line that nothing may cover, which is slanted perhaps, that are taken as one box


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    size: float,
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]] = (),
    marker: float = 11.0,
) -> None:
    """Write a text beside each point, those in a crowd first.

    A thin line leads from a text to its point where that is further away, or where another point is nearer.

    Args:
        axes: whose limits are final.
        points: in the axes' data coordinates.
        texts: one a point.
        size: of the font.
        lines: that no label is to cover, from one point to another, likewise.
        marker: how large a point is drawn, in points, as the font is.

    Raises:
        UserError: if there is no room for one of them.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # places and sizes in pixels are known from here on
    renderer = figure.canvas.get_renderer()
    marks = [tuple(axes.transData.transform(point)) for point in points]
    half = (marker / 2) * figure.dpi / 72
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in marks]
    for ends in lines:
        taken += along(*axes.transData.transform(ends))
    room = axes.get_window_extent(renderer)
    crowd = [sum(math.dist(mark, other) < 100 for other in marks) for mark in marks]
    for at in sorted(range(len(marks)), key=lambda i: -crowd[i]):
        text = axes.annotate(texts[at], points[at], fontsize=size, xytext=(0, 0), textcoords="offset pixels")
        extent = text.get_window_extent(renderer)
        width, height = extent.width + 2 * MARGIN, extent.height + 2 * MARGIN
        for box in places_around(*marks[at], width, height):
            inside = room.x0 <= box.x0 and box.x1 <= room.x1 and room.y0 <= box.y0 and box.y1 <= room.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            raise UserError(f"there is no room for the label {texts[at]!r}: make the picture larger")
        taken.append(box)
        now = text.get_window_extent(renderer)
        text.set_position((box.x0 + MARGIN - now.x0, box.y0 + MARGIN - now.y0))
        nearest, away = nearest_in(box, marks[at])
        if away > min([NEAR, *(nearest_in(box, other)[1] for other in marks[:at] + marks[at + 1 :])]):
            ends = [axes.transData.inverted().transform(end) for end in (marks[at], nearest)]
            axes.plot(*zip(*ends, strict=True), color="0.55", linewidth=0.5, zorder=1)


def along(start: Sequence[float], end: Sequence[float]) -> list[Bbox]:
    """A line as small boxes."""
    (x0, y0), (x1, y1) = start, end
    count = max(1, math.ceil(math.dist(start, end) / PIECE))
    corners = [(x0 + (x1 - x0) * at / count, y0 + (y1 - y0) * at / count) for at in range(count + 1)]
    return [
        Bbox.from_extents(min(a, c) - 1, min(b, d) - 1, max(a, c) + 1, max(b, d) + 1)
        for (a, b), (c, d) in pairwise(corners)
    ]


def nearest_in(box: Bbox, point: tuple[float, float]) -> tuple[tuple[float, float], float]:
    """The place in a box that is nearest to a point, and how far away it is."""
    x, y = point
    nearest = min(max(x, box.x0), box.x1), min(max(y, box.y0), box.y1)
    return nearest, math.dist(nearest, point)


def places_around(x: float, y: float, width: float, height: float) -> Iterator[Bbox]:
    """Where a label could stand: to the right first, then all around, ever further away."""
    for ring in range(RINGS):
        away = 8 + STEP * ring
        for direction in range(DIRECTIONS):
            angle = 2 * math.pi * direction / DIRECTIONS
            left = x + math.cos(angle) * (away + width / 2) - width / 2
            bottom = y + math.sin(angle) * (away + height / 2) - height / 2
            yield Bbox.from_bounds(left, bottom, width, height)
