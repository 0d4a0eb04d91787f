"""Judges the scripts of `examples/scripts`, and writes what came of them: `judge.py --write docs/examples.md`

With `--check` nothing is written; the exit status says whether the same kinds of death are fine now as on the page,
and whether the other tool says there what `rival.json` keeps. Which verdicts the others have may depend on which of
several ranks comes first.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rival

HERE = Path(__file__).resolve().parent
DEATHS = ("kill", "rank", "term", "int", "ext4", "posix-strict")


@dataclass(frozen=True)
class Example:
    """A script, and how it is started."""

    name: str
    says: str
    options: tuple[str, ...] = ()
    storages: tuple[str, ...] = ("ext4",)
    """Losses of power that are tried; a right script has many disks under `posix-strict`."""


_BOTH = ("ext4", "posix-strict")
EXAMPLES = (
    Example("plain.py", "the loop that everybody writes first: one file, overwritten at every save", storages=_BOTH),
    Example("by_hand.py", "the same made right by hand: random stream, rename, and syncs", storages=_BOTH),
    Example("with_forge_ref.py", "the same with the reference"),
    Example("with_lightning.py", "the loop of Lightning 2.6.6, with the checkpoints that it makes by itself"),
    Example("with_transformers.py", "the `Trainer` of transformers 5.24.0 on a tiny model with random weights"),
    Example(
        "ddp.py",
        "data parallel training on two ranks; every single file is written atomically",
        ("--ranks", "2", "--deaths", "kill,rank", "--grace", "10"),
    ),
)
_HEAD = f"""# Six scripts, judged

`python examples/judge.py --write docs/examples.md` writes this page: it runs `forge-conformance script` on each script
of [`examples/scripts`](../examples/scripts). [scripts.md](scripts.md) explains the verdicts.

A cell has the verdicts that are not fine after this kind of death: `rank` is one rank alone, `ext4` and `posix-strict`
are losses of power. Each failure's replay script came to the same verdict by itself. `./with-tox run -e scripts`
compares the page with what comes of the scripts.

The last column is what another tool says, in its words, with how many points have which verdict.
{rival.NAME} {rival.version()} kills a script before a file event, or when a file is half written, and starts it again;
it tries no loss of power. It compares a result at the end, for which it needs the place of the last checkpoint.
It tried {rival.MOST_POINTS} points of each script at most. `python examples/rival.py --write` asks it again.

"""


def judged(example: Example, seconds: int) -> dict[str, Any]:
    """The report on a script."""
    script = HERE / "scripts" / example.name
    with tempfile.TemporaryDirectory() as out:
        storages = [word for name in example.storages for word in ("--storage", name)]
        options = [*example.options, *storages, "--seconds", str(seconds), "--check-replays", "--out", out]
        own = [sys.executable, "-m", "forge_conformance.cli", "script", *options]
        done = subprocess.run([*own, "--", sys.executable, str(script), "{dir}"], capture_output=True, text=True)
        if done.returncode not in (0, 1):
            sys.exit(f"{example.name} could not be judged:\n{done.stdout}{done.stderr}")
        report: dict[str, Any] = json.loads((Path(out) / "script.json").read_text())
        if any(one["cut_short"] for one in report["explored"]):
            sys.exit(f"{example.name}: there was no time for all of it; give --seconds more than {seconds}.")
        return report


def page(seconds: int, at_once: int) -> str:
    """The whole page."""
    lines = [f"| script | {' | '.join(DEATHS)} | {rival.NAME} |", "|---" * (2 + len(DEATHS)) + "|"]
    stories, said = [], rival.kept()
    with ThreadPoolExecutor(at_once) as pool:
        reports = list(pool.map(lambda example: judged(example, seconds), EXAMPLES))
    for example, report in zip(EXAMPLES, reports, strict=True):
        cells = []
        for death in DEATHS:
            words = sorted({found["verdict"] for found in report["found"] if death in found["deaths"]})
            tried = any(one["storage"] == death for one in report["explored"])
            cells.append((", ".join(words) or "fine") if tried else "not tried")
        link = f"[{example.name}](../examples/scripts/{example.name})"
        lines.append(f"| {link}: {example.says} | {' | '.join(cells)} | {said[example.name].cell} |")
        stories += [_story(example, report)] if report["found"] else []
    return _HEAD + "\n".join(lines) + "\n" + "".join(stories)


def _story(example: Example, report: dict[str, Any]) -> str:
    """The first cause, as the command tells it, without what is only so on this machine."""
    text = report["found"][0]["text"].replace(report["command"], f"python {example.name} {{dir}}")
    _, _, story = text.partition("\n\n")
    shown = story.partition("\n  what the restart printed")[0].rstrip()
    shown = re.sub(r"(loss|grad_norm)('?:? '?)-?[0-9.]+", r"\1\2...", shown)
    return f"\n## {example.name}: {report['found'][0]['verdict']}\n\n```text\n{shown}\n```\n"


def fine(page: str) -> list[list[str]]:
    """The cells of a page's table: what is fine, what was not tried, and all else as one; the last one as it is."""
    rows = [line.removesuffix(" |").split(" | ")[1:] for line in page.splitlines() if line.startswith("| [")]
    return [[*(cell if cell in ("fine", "not tried") else "bad" for cell in row[:-1]), row[-1]] for row in rows]


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare the page, and write nothing")
    parser.add_argument("--seconds", type=int, default=3600, help="time for each script and kind of death (3600)")
    parser.add_argument("-n", type=int, default=1, metavar="N", help="scripts that are judged at the same time (1)")
    options = parser.parse_args()
    now = page(options.seconds, options.n)
    if options.write:
        options.write.write_text(now)
    if options.check and fine(options.check.read_text()) != fine(now):
        print(f"{options.check} is not what comes of the scripts now:\n{now}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
