"""A page that is one file: sections of words, tables and figures, and all that draws them.

Nothing is fetched: Plotly's JavaScript is embedded once, and a content security policy in the
head forbids the browser every request. Words are escaped here and nowhere else.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Level = Literal["good", "open", "bad"]

_SIGNS: dict[Level, str] = {"good": "✓", "open": "?", "bad": "✗"}
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,  # Plotly's own button uploads the figure to a service
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": [
        "zoom2d", "pan2d", "select2d", "lasso2d", "autoScale2d", "zoom3d", "pan3d",
        "tableRotation", "resetCameraLastSave3d",
    ],
}  # fmt: skip


class Words(NamedTuple):
    """A paragraph; a remark is set smaller."""

    text: str
    remark: bool = False


class Verdict(NamedTuple):
    """A judgement in words, set apart by a sign and a border that print and need no colour."""

    level: Level
    text: str


class Table(NamedTuple):
    """Rows of text below a head; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Figures(NamedTuple):
    """Figures side by side, as many as the window is wide for."""

    figures: Sequence["Figure"]


class Listing(NamedTuple):
    """Text to be copied, folded away under its title."""

    title: str
    text: str
    open: bool = False


Part = Words | Verdict | Table | Figures | Listing


class Section(NamedTuple):
    """Parts under a title; `level` 2 is a chapter, 3 a section of one."""

    title: str
    parts: Sequence[Part]
    level: int = 3


def render(title: str, verdict: Verdict, sections: Sequence[Section]) -> str:
    """Return a page as HTML.

    Args:
        title: Its title.
        verdict: What stands at the very top.
        sections: In their order.
    """
    numbers = count(1)
    body = "\n".join(
        piece
        for k, section in enumerate(sections, start=1)
        for piece in _section(section, k, numbers)
    )
    drawn = any(isinstance(part, Figures) for section in sections for part in section.parts)
    drawing = _drawing() if drawn else ""
    chapters = [(k, s.title) for k, s in enumerate(sections, start=1) if s.level == 2]
    links = "".join(f'<a href="#section-{k}">{escape(name)}</a>' for k, name in chapters)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<script>{_SORT}{drawing}</script>\n</head><body>\n"
        f"<h1>{escape(title)}</h1>\n{_part(verdict, numbers)}\n"
        + (f"<nav>{links}</nav>\n" if len(chapters) > 1 else "")
        + f"{body}\n</body></html>\n"
    )


def _drawing() -> str:
    from plotly.offline import get_plotlyjs  # a page of words and tables needs none of it

    return f"{_CANVAS}{get_plotlyjs()}"


def _section(section: Section, k: int, numbers: "count[int]") -> Iterator[str]:
    yield f'<h{section.level} id="section-{k}">{escape(section.title)}</h{section.level}>'
    for part in section.parts:
        yield _part(part, numbers)


def _part(part: Part, numbers: "count[int]") -> str:
    match part:
        case Words(text, remark):
            return f"<p{' class=remark' if remark else ''}>{_marked(text)}</p>"
        case Verdict(level, text):
            return (
                f'<p class="verdict {level}"><span aria-hidden="true">{_SIGNS[level]}</span> '
                f"{_marked(text)}</p>"
            )
        case Table(head, rows):
            top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
            lines = "\n".join(
                "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            )
            return (
                f'<div class="wide"><table><thead><tr>{top}</tr></thead>\n'
                f"<tbody>{lines}</tbody></table></div>"
            )
        case Figures(figures):
            drawn = "\n".join(
                '<div class="figure">'
                + figure.to_html(
                    full_html=False,
                    include_plotlyjs=False,
                    div_id=f"figure-{next(numbers)}",
                    config=_CONFIG,
                )
                + "</div>"
                for figure in figures
            )
            return f'<div class="figures">{drawn}</div>'
        case Listing(title, text, unfolded):
            return (
                f"<details{' open' if unfolded else ''}><summary>{escape(title)}</summary>"
                f"<pre>{escape(text)}</pre></details>"
            )


def _marked(text: str) -> str:
    """Escape words, and set what stands between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if k % 2 else p for k, p in enumerate(pieces))


# Scripts may run and make others (Plotly's WebGL compiles some), but nothing may be fetched.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:"
)

# Plotly draws the marks of a scene on canvases and reads them back; browsers warn of that unless
# it was announced.
_CANVAS = """{
  const original = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, options) {
    const announced = kind === "2d" ? {willReadFrequently: true, ...options} : options;
    return original.call(this, kind, announced);
  };
}
"""

# A click on the head of a column sorts its table, once more the other way round; empty cells last.
_SORT = """addEventListener("click", ({target}) => {
  const head = target.closest("th");
  if (!head) return;
  const body = head.closest("table").tBodies[0], down = head.dataset.sorted !== "up";
  for (const other of head.parentNode.cells) delete other.dataset.sorted;
  head.dataset.sorted = down ? "up" : "down";
  const key = (row) => row.cells[head.cellIndex].textContent;
  const rows = [...body.rows].map((row) => [key(row), parseFloat(key(row)), row]);
  rows.sort(([a, m], [b, n]) => !a - !b || (down ? 1 : -1) *
    (isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) || a.localeCompare(b) : m - n));
  body.append(...rows.map(([, , row]) => row));
});
"""

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff; margin: 0 auto;
  padding: 0 1rem 3rem; max-width: 78rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 1.2rem 0 .8rem; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; border-top: 3px solid #111; padding-top: .5rem; }
h3 { font-size: 1.1rem; margin: 1.8rem 0 .4rem; }
p { margin: .4rem 0; max-width: 48rem; }
.remark { color: #555; font-size: .9rem; }
nav a { margin-right: 1rem; }
.verdict { border-left: 6px solid; padding: .4rem .7rem; background: #f4f4f4; }
.verdict span { font-weight: 700; }
.good { border-color: #009e73; }
.open { border-color: #888; border-left-style: dashed; }
.bad { border-color: #000; border-left-width: 12px; font-weight: 600; background: #fbe3d6; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin-bottom: .8rem; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid #ddd; overflow-wrap: normal; }
th { border-bottom: 2px solid #111; cursor: pointer; }
th[data-sorted=up]::after { content: " ▲"; }
th[data-sorted=down]::after { content: " ▼"; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr));
  gap: .5rem 1rem; }
.figure { min-width: 0; break-inside: avoid; }
pre { overflow-x: auto; background: #f4f4f4; padding: .7rem; font-size: .85rem; }
code { background: #f4f4f4; padding: 0 .2rem; }
"""
