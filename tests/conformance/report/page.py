"""What all reports share: the page that a browser shows, and how files are written."""

import html
from collections.abc import Iterable, Mapping
from pathlib import Path

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { padding: 0 .7rem 0 0; text-align: left; white-space: nowrap; }
td.n { text-align: right; color: #888; } tr.mark td { color: #06c; font-weight: 600; }
td.good { background: #bfe5c4; } td.bad { background: #f0a8a0; } td.cut { text-align: right; min-width: 4.5rem; }
pre { background: #f6f6f4; padding: 1rem; overflow-x: auto; } details { margin: .6rem 0; }
tr:hover { background: #eef3f8; }
span.good { color: #2d7a3e; } span.not { color: #888; } div.bad, span.bad, th.bare { color: #c0392b; font-weight: 600; }
div.grid { overflow: auto; max-height: 90vh; border: 1px solid #ddd; font-size: 12px; }
.grid td { min-width: 13px; height: 13px; border: 1px solid #eee; padding: 0; } .grid td.good { background: #4a9d5b; }
.grid td.own { background: #fff; outline: 2px solid #c0392b; outline-offset: -2px; }
.grid td.too { background: #f0c36d; } .grid td.held { background: #e6eee8; } .grid th { font-weight: 400; }
.grid th.head { vertical-align: bottom; padding: 2px 0; position: sticky; top: 0; background: #fff; }
.grid th.head span { writing-mode: vertical-rl; transform: rotate(180deg); }
.grid th.side { position: sticky; left: 0; background: #fff; padding: 0 .7rem 0 .3rem; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """One self-contained HTML page."""
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return head + "\n".join(body) + "\n"


def unfolded(head: str, text: str) -> str:
    """A long text below its headline, which folds it away."""
    return f"<details open><summary>{html.escape(head)}</summary><pre>{html.escape(text)}</pre></details>"


def write(files: Mapping[str, str], directory: Path) -> list[str]:
    """Write all files, by name, into a directory that is made if need be; their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content, encoding="utf-8", errors="backslashreplace")
    return [str(directory / name) for name in files]
