"""Draw `docs/report.svg`: the report on the adapter of docs/your-manager.md, with one mistake put into it.

    python docs/picture.py            draw it
    python docs/picture.py --check    exit with 1 if the file is not what would be drawn

The picture is the real output of `forge-conformance run`.  Left out is what
differs from machine to machine: versions, times, and where the files went.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
PICTURE = HERE / "report.svg"
RIGHT = """\
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)
"""
WRONG = """\
        torch.save(state, path)
"""
"""The mistake: a kill in the middle leaves half a file under the name of a checkpoint."""
_COMMAND = ("run", "--impl", "mine.py:Mine")
_FAILED = 1
_COLUMNS = 112
_CHARACTER, _LINE, _MARGIN, _BAR = 8.4, 18, 16, 36
_COLOURS = {"✓": "#7ee787", "✗": "#ff7b72", "~": "#e3b341", "?": "#d2a8ff", "·": "#8b949e"}
_OF_THIS_MACHINE = (
    (re.compile(r", python \S+, torch \S+$", re.MULTILINE), ""),
    (re.compile(r" in \d+ s\)"), ")"),
    (re.compile(r"^written: .*\n", re.MULTILINE), ""),
)


def adapter(page: str) -> str:
    """The code of the one adapter in a page."""
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return str(code)


def report() -> str:
    """What the terminal shows, without what depends on this machine."""
    right = adapter((HERE / "your-manager.md").read_text())
    if right.count(RIGHT) != 1:
        sys.exit("docs/your-manager.md: the lines that the picture's mistake replaces are not in the adapter once.")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "mine.py").write_text(right.replace(RIGHT, WRONG))
        command = [sys.executable, "-m", "forge_conformance.cli", *_COMMAND, "--out", "report"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != _FAILED:
        sys.exit(f"The run of the picture ended with {done.returncode}, not with 1:\n{done.stdout}{done.stderr}")
    shown = done.stdout
    for pattern, instead in _OF_THIS_MACHINE:
        shown = pattern.sub(instead, shown)
    return f"$ forge-conformance {' '.join(_COMMAND)}\n\n{shown.strip()}"


def drawn(text: str) -> str:
    """The text as a terminal in SVG; each of its lines is a line of the file."""
    lines = [part for line in text.splitlines() for part in _folded(line)]
    width, height = round(_COLUMNS * _CHARACTER + 2 * _MARGIN), len(lines) * _LINE + _BAR + _MARGIN
    rows = [_row(line, _BAR + (number + 1) * _LINE - 4) for number, line in enumerate(lines)]
    font = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            "<!-- Drawn by docs/picture.py. -->",
            f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>',
            *(
                f'<circle cx="{_MARGIN + 6 + 20 * number}" cy="18" r="6" fill="{colour}"/>'
                for number, colour in enumerate(("#ff5f57", "#febc2e", "#28c840"))
            ),
            f'<g font-family="{font}" font-size="14" fill="#c9d1d9">',
            *filter(None, rows),
            "</g>",
            "</svg>",
            "",
        ]
    )


def _folded(line: str) -> list[str]:
    """A line that is too wide, as a shell takes it: in parts that end with a backslash."""
    if len(line) <= _COLUMNS:
        return [line]
    parts = textwrap.wrap(line, _COLUMNS - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [*(f"{part} \\" for part in parts[:-1]), parts[-1]]


def _row(line: str, y: int) -> str:
    mark = re.match(r"  ([✓✗~?·]) (pass|fail|expected-fail|unreached|unclaimed)\b", line)
    if mark is None:
        return _text(line, 0, y, ' font-weight="bold"' if line.startswith(("$", "FAIL")) else "")
    return _text(mark[0], 0, y, f' fill="{_COLOURS[mark[1]]}"') + _text(line[mark.end() :], mark.end(), y)


def _text(text: str, column: int, y: int, attributes: str = "") -> str:
    """A piece of a line; its width is given, so that columns stay columns whatever font a reader has."""
    shown = text.strip()
    if not shown:
        return ""
    x = _MARGIN + (column + len(text) - len(text.lstrip())) * _CHARACTER
    inner = escape(shown, quote=False).replace(" ", "\N{NO-BREAK SPACE}")  # others would become one
    return f'<text x="{x:.1f}" y="{y}" textLength="{len(shown) * _CHARACTER:.1f}"{attributes}>{inner}</text>'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/picture.py", description="Draw docs/report.svg.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is another one")
    options = parser.parse_args()
    now = drawn(report())
    if not options.check:
        PICTURE.write_text(now)
        return 0
    if PICTURE.read_text() == now:
        return 0
    print("docs/report.svg is not what the suite reports now; run `python docs/picture.py`.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
