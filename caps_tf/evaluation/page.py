"""The parts that report.html and compare.html are made of: HTML that fits narrow and wide screens, light and dark."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from caps_tf.evaluation.style import png_bytes

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #5c5c5c; --ground: #fff; --line: #e2e2e2; --link: #0b5cad }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --faint: #a6a6a6; --ground: #17191c; --line: #3a3d42; --link: #7db8f0 }
  img { filter: brightness(.88) }
}
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground); overflow-wrap: anywhere }
body { max-width: 62rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.15rem; font-weight: 600; margin: 0 0 .5rem }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem }
a { color: var(--link) }
p { max-width: 46rem; margin: .6rem 0 }
.note { color: var(--faint); font-size: .92rem }
.accuracies { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: .6rem 1rem; margin: 0 }
.accuracies { align-items: end }
.accuracies dt { color: var(--faint) }
.accuracies dd { margin: 0; font-size: .92rem }
.accuracies .big { font-size: clamp(2.3rem, 10vw, 3.4rem); font-weight: 650; line-height: 1.1 }
.accuracies .big, td { font-variant-numeric: tabular-nums }
.scroll { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; margin: .4rem 0; overflow-wrap: normal }
th, td { padding: .25rem 1rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } td { white-space: nowrap } td.long { white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
figure { margin: .8rem 0 }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px }
@media (max-width: 40rem) { .wide img { max-width: none; width: 44rem } }
details { margin: .6rem 0 } details details { margin-left: 1rem }
summary { cursor: pointer }
"""
_CSS_PIXELS_PER_INCH = 96
_WIDE = 6.5  # inches: drawn to the width of a telephone, the labels of a wider figure cannot be read
_LONG = 40  # characters of a cell, from which on it may be broken into lines


def page(title: str, body: Iterable[str]) -> bytes:
    """A whole page of the parts that the other functions make, its title in plain text.

    Example:
        >>> page("cats & dogs", [paragraph("<3")]).decode().splitlines()[-3:]
        ['<p>&lt;3</p>', '</body>', '</html>']
    """
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>"
    )
    content = "\n".join(body)
    text = f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{content}\n</body>\n</html>\n'
    return text.encode()


def heading(text: str, level: int = 2) -> str:
    """A heading, from plain text.

    Example:
        >>> heading("A & B")
        '<h2>A &amp; B</h2>'
    """
    return f"<h{level}>{html.escape(text)}</h{level}>"


def paragraph(text: str, note: bool = False) -> str:
    """A paragraph, from plain text; a note is fainter."""
    return f'<p class="note">{html.escape(text)}</p>' if note else f"<p>{html.escape(text)}</p>"


def accuracies(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracies in large figures, with their intervals.

    Args:
        results: what each is, in words -> an entry of `metrics.report`; those without examples are left out.

    Example:
        >>> entry = {"accuracy": 0.5, "interval": [0.1, 0.9], "num_examples": 4}
        >>> "10.0 to 90.0&nbsp;%" in accuracies({"test accuracy": entry})
        True
    """
    boxes = []
    for name, entry in results.items():
        if entry["num_examples"]:
            low, high = (f"{100 * limit:.1f}" for limit in entry["interval"])
            boxes.append(
                f'<div><dt>{html.escape(name)}</dt><dd class="big">{100 * entry["accuracy"]:.1f} %</dd>'
                f"<dd>95 % interval {low} to {high}&nbsp;%</dd></div>"
            )
    return f'<dl class="accuracies">{"".join(boxes)}</dl>' if boxes else paragraph("No examples were tested.")


def share(entry: Mapping[str, Any] | None) -> str:
    """An accuracy of `metrics.report` in a cell of a table; a dash where there is nothing.

    Example:
        >>> share({"accuracy": 0.5, "interval": [0.1, 0.9], "num_examples": 5400})
        '50.0 % (10.0 to 90.0) of 5,400'
    """
    if entry is None or not entry["num_examples"]:
        return "–"
    low, high = entry["interval"]
    return f"{100 * entry['accuracy']:.1f} % ({100 * low:.1f} to {100 * high:.1f}) of {entry['num_examples']:,}"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of cells, the first of each its heading, in a box of their own that scrolls; everything is escaped.

    Example:
        >>> "<td>&lt;1&gt;</td>" in table(["", "b"], [("a", "<1>")])
        True
    """
    lines = ['<div class="scroll"><table>']
    if header:
        cells = (f'<th scope="col">{html.escape(str(cell))}</th>' if cell else "<td></td>" for cell in header)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    for first, *rest in rows:
        cells = (f"<td{_class(str(cell))}>{html.escape(str(cell))}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{html.escape(str(first))}</th>{"".join(cells)}</tr>')
    return "\n".join([*lines, "</table></div>"])


def _class(cell: str) -> str:
    return ' class="long"' if len(cell) > _LONG else ""


def folded(summary: str, *content: str, is_open: bool = False) -> str:
    """Parts that a click on their summary shows."""
    inner = "\n".join(content)
    return f"<details{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>\n{inner}\n</details>"


def picture(figure: Figure, alt: str, source: str = "", narrow: str = "") -> str:
    """A figure in its natural size, or smaller where the page is; on a narrow screen a wide one scrolls in its box.

    Args:
        figure: what is shown.
        alt: what it shows, in words.
        source: name of its file beside the page; without it, the page holds the picture itself.
        narrow: the same for narrow screens: name of a file, or what `embedded` makes of a figure.

    Example:
        >>> from caps_tf.evaluation.style import new_figure
        >>> picture(new_figure(4, 2), "nothing", "empty.png")
        '<figure><a href="empty.png"><img src="empty.png" width="384" height="192" alt="nothing"></a></figure>'
    """
    inches = figure.get_size_inches()
    width, height = (round(_CSS_PIXELS_PER_INCH * float(side)) for side in inches)
    link = html.escape(source) or embedded(figure)
    shown = f'<img src="{link}" width="{width}" height="{height}" alt="{html.escape(alt)}">'
    if narrow:
        small = f'<source media="(max-width: 40rem)" srcset="{html.escape(narrow)}">'
        shown = f"<picture>{small}{shown}</picture>"
    if source:  # in full size
        shown = f'<a href="{link}">{shown}</a>'
    is_wide = inches[0] > _WIDE and not narrow
    return f'<figure class="scroll wide">{shown}</figure>' if is_wide else f"<figure>{shown}</figure>"


def embedded(figure: Figure) -> str:
    """A figure as an address that holds the whole picture.

    Example:
        >>> from caps_tf.evaluation.style import new_figure
        >>> embedded(new_figure(2, 1))[:26]
        'data:image/png;base64,iVBO'
    """
    return f"data:image/png;base64,{base64.b64encode(png_bytes(figure)).decode()}"
