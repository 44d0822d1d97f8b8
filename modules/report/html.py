"""One HTML file that holds all it shows: text, tables and pictures, without scripts, servers or a network."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from matplotlib.figure import Figure

NARROW = 700  # pixels of a page from which on there is room for a wide picture
STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; font: 1rem/1.45 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; overflow-wrap: break-word; }
p, summary, td + td:not(.number) { overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { max-width: 46rem; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; max-width: 100%; }
th, td { padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
th { font-weight: 600; } td.number, th.number { text-align: right; padding: .25rem 0 .25rem .6rem; }
.wide { overflow-x: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 1rem 0; } .curves figure { margin: 0; }
img { display: block; max-width: 100%; height: auto; } .wide img { max-width: none; }
.note { font-size: .875rem; color: #444; }
details { margin: .5rem 0; } summary { cursor: pointer; }
@media print { body { max-width: none; font-size: 9pt; padding: 0; } figure, tr { break-inside: avoid; }
  details > summary { list-style: none; }
  details::details-content { content-visibility: visible; block-size: auto; } }
"""


def text(*paragraphs: str, note: bool = False) -> str:
    """Paragraphs; note: in smaller type."""
    kind = ' class="note"' if note else ""
    return "\n".join(f"<p{kind}>{escape(paragraph)}</p>" for paragraph in paragraphs)


def section(title: str, *parts: str) -> str:
    """A heading and what is below it."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table; numbers: all columns but the first are numbers, which stand at the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ["", *[' class="number"' if numbers else ""] * (len(cells) - 1)]
        return "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))

    body = "\n".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{line(heads, "th")}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    )


def folded(summary: str, content: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>\n{content}\n</details>"


def picture(figure: Figure, description: str, narrow: Figure | None = None) -> str:
    """A figure, with what it shows for those who cannot see it.

    Args:
        figure: drawn at the width at which it is to be seen. Where it has no room it becomes smaller with its type,
            or is moved to and fro if it is wide and there is no narrow one.
        description: in a sentence.
        narrow: the same for a phone.
    """
    width, height = _pixels(figure)
    image = f'<img width="{width}" height="{height}" alt="{escape(description)}" src="{_data(figure)}">'
    if narrow is None:
        kind = ' class="wide"' if width > NARROW else ""
        return f"<figure{kind}>{image}</figure>"
    width, height = _pixels(narrow)
    source = f'<source media="(max-width: {NARROW}px)" width="{width}" height="{height}" srcset="{_data(narrow)}">'
    return f"<figure><picture>{source}{image}</picture></figure>"


def _pixels(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches()
    return round(96 * width), round(96 * height)


def _data(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def page(title: str, *parts: str) -> str:
    """The whole file."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',  # or a browser asks for one
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            *parts,
            "</body></html>\n",
        ]
    )
