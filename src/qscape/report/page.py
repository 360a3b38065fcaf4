"""A self-contained HTML page with plotly charts, tables and downloads.

The file needs nothing but a browser: plotly.js, the data and the style are embedded, and a content security
policy forbids network access and every script but its own. It follows the reader's light or dark scheme.

Text from outside (a label, an id, a file name) enters `body` through `escape`, and the strings of a chart
through `wrap_for_plotly`.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from qscape.errors import one_line
from qscape.report import require_extra

with require_extra("Pages"):
    import plotly.io
    from plotly.offline import get_plotlyjs

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
<noscript><p class="problem">The charts and downloads of this page need JavaScript.</p></noscript>
{data}
<script>{script}</script>
</body>
</html>
"""


def render_document(
    title: str,
    body: str,
    figures: "Mapping[str, Figure | dict[str, Any]]",
    downloads: Mapping[str, str] = {},
    script: str = "",
) -> str:
    """Render a whole page as text.

    Args:
        title: plain text.
        body: HTML.
        figures: the charts at the places that `figure(name, ...)` made in the body. The page sets the colours
            of text, axes and backgrounds. Further keys of a dict: `frames`, `config`.
        downloads: the text behind each `download_link(name)`.
        script: JavaScript of this page, run once all charts exist, with `charts` (name -> element) and
            `Plotly`. The event "drawn" on `document` signals that all charts were redrawn.
    """
    code = "\n".join(
        [
            _read_data_file("page.js"),
            "start().then(async () => {",
            script,
            'root.dataset.ready = "yes";',
            "}).catch(failed);",
        ]
    )
    data = [f'<script type="text/plain" id="plotly">{_compress(get_plotlyjs())}</script>'] if figures else []
    data += [
        f'<script type="application/json" data-figure="{escape(name)}" id="figure-{escape(name)}">'
        f"{_figure_json(chart)}</script>"
        for name, chart in figures.items()
    ]
    data += [
        f'<script type="text/plain" data-file="{escape(name)}">{_compress(content)}</script>'
        for name, content in downloads.items()
    ]
    return _PAGE.format(
        policy=_content_policy(code),
        title=escape(title),
        style=_read_data_file("page.css"),
        body=body,
        data="\n".join(data),
        script=code,
    )


def escape(value: Any) -> str:
    """Escape any value as HTML text; also safe in an attribute."""
    return html.escape(one_line(str(value)))


def escape_with_breaks(value: Any) -> str:
    """Escape text for HTML and allow line breaks between the fields of an agent's label."""
    return re.sub(r"([\[,+])(?=[a-z_]+[.=+\[])", r"\1<wbr>", escape(value))


def wrap_for_plotly(value: Any, width: int = 40) -> str:
    """Escape any value for plotly, which interprets some tags, in lines of at most `width` characters."""
    lines, words = (
        [""],
        re.split(r"(?<=[\s,+\[])", " ".join(one_line(str(value)).split())),
    )  # also between an agent's fields
    for word in words:
        for piece in re.findall(rf".{{1,{width}}}", word):
            if lines[-1] and len(lines[-1] + piece.rstrip()) > width:
                lines.append("")
            lines[-1] += piece
    return "<br>".join(html.escape(line.rstrip(" "), quote=False) for line in lines)


def make_translucent(colour: str, alpha: float = 0.18) -> str:
    """Convert a colour "#RRGGBB" to a translucent one, for bands."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def figure(name: str, caption: str, title: str = "") -> str:
    """Render the place of a chart. `title`, `caption`: plain text. `name`: letters, digits, "-"."""
    head = f"<strong>{escape(title)}</strong>" if title else ""
    return (
        f"<figure><figcaption>{head}{escape(caption)}</figcaption>"
        f'<div class="plot" id="chart-{escape(name)}"></div></figure>'
    )


def charts(*placed: str) -> str:
    """Place figures side by side where the screen is wide enough."""
    return f'<div class="charts">{"".join(placed)}</div>'


def section(name: str, title: str, *parts: str) -> str:
    """Render a section that `contents` can link to."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "</section>\n"


def contents(sections: Iterable[tuple[str, str]]) -> str:
    """Render links to sections, from the name and title of each."""
    links = "".join(f'<a href="#{escape(name)}">{escape(title)}</a>' for name, title in sections)
    return f'<nav aria-label="Contents">{links}</nav>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    numbers: Iterable[int] = (),
    best: Iterable[int] = (),
    caption: str = "",
) -> str:
    """Render a table of plain text. `numbers`: columns to align right; `best`: rows to highlight."""
    right, marked = set(numbers), set(best)

    def cells(tag: str, row: Sequence[Any]) -> str:
        css = [" class=number" if k in right else "" for k in range(len(row))]
        return "".join(f"<{tag}{c}>{escape_with_breaks(x)}</{tag}>" for c, x in zip(css, row, strict=True))

    lines = "\n".join(
        f"<tr{' class=best' if k in marked else ''}>{cells('td', row)}</tr>" for k, row in enumerate(rows)
    )
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
    made = f'<div class="scroll" tabindex="0"><table>{head}<tbody>\n{lines}</tbody></table></div>'
    # A caption inside of the table would be as wide as the table, and cut off on a phone.
    return f"<figure><figcaption>{escape(caption)}</figcaption>{made}</figure>" if caption else made


def download_link(name: str) -> str:
    """Render a button that saves the file `name` of the page's downloads."""
    return f'<button type="button" class="download" data-download="{escape(name)}">{escape(name)}</button>'


def _figure_json(chart: "Figure | dict[str, Any]") -> str:
    """Return JSON of a chart without plotly's template; `<` is escaped, so that the data cannot end its
    element.
    """
    fields = json.loads(str(plotly.io.to_json(chart, validate=False)))
    fields.get("layout", {}).pop("template", None)
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")


def _compress(content: str) -> str:
    """Return gzip, then base64; the same bytes for the same content."""
    return base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()


def _content_policy(code: str) -> str:
    """Allow no network, and no script but this one (by its hash) and the plotly.js that it unpacks."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline'; img-src data: blob:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _read_data_file(name: str) -> str:
    return (files("qscape.report") / "data" / name).read_text(encoding="utf-8")
