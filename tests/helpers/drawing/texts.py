"""What stands in a figure as it is drawn: its texts and where they are."""

from collections.abc import Sequence
from itertools import combinations

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

Drawn = list[tuple[str, Bbox]]


def drawn_texts(figure: Figure) -> Drawn:
    """Each text that drawing the figure draws, and the box in dots that it takes."""
    found, draw = [], Text.draw

    def note(self, renderer):
        draw(self, renderer)
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), Text.get_window_extent(self, renderer)))  # of an annotation without its mark

    Text.draw = note
    try:
        figure.canvas.draw()
    finally:
        Text.draw = draw
    return found


def overlapping(texts: Drawn, touching: float = 0.5) -> list[tuple[str, str]]:
    """Pairs of texts that share more than so many dots in both directions."""
    return [
        (one, other)
        for (one, a), (other, b) in combinations(texts, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > touching and min(a.y1, b.y1) - max(a.y0, b.y0) > touching
    ]


def outside(figure: Figure, texts: Drawn) -> list[str]:
    """The texts that leave the figure."""
    page = figure.bbox
    return [
        text
        for text, box in texts
        if box.x0 < page.x0 - 0.5 or box.y0 < page.y0 - 0.5 or box.x1 > page.x1 + 0.5 or box.y1 > page.y1 + 0.5
    ]


def smallest_type(figure: Figure) -> float:
    """The size of the smallest type in a figure, in points."""
    return min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text().strip())


def assert_legible(figure: Figure, expected: Sequence[str] = ()) -> None:
    """No text covers another or leaves the page, none is smaller than six points, and those expected are there."""
    texts = drawn_texts(figure)
    assert overlapping(texts) == []
    assert outside(figure, texts) == []
    assert smallest_type(figure) >= 6
    everything = " ".join(" ".join(text.split()) for text, _ in texts)
    assert [text for text in expected if text not in everything] == []
