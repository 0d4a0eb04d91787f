"""Asks ckpt-chaos, a released tool with the same aim, about the scripts of `examples/scripts`: `rival.py --write`

It starts a script twice for each of its points, so this takes long, and what it said is kept in `rival.json`.
`judge.py` puts that beside our verdicts. Invariant: what is kept names the tool's version and the digest of each
script, and what is about another version or another text is refused.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
KEPT = HERE / "rival.json"
NAME = "ckpt-chaos"
MOST_POINTS = 12
"""It spreads them evenly over the file events, and over the halves of files that are being written."""
_VERDICTS = "HARD_FAIL,SILENT_DIVERGENCE,LOST_WORK,CONTROL_FAIL"
_TENSORS = f"{sys.executable} -IS {HERE / 'tensors.py'}"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "plain.py": ("--result-cmd", f"{_TENSORS} {{out}}/checkpoint.pt"),
    "by_hand.py": ("--result-cmd", f"{_TENSORS} {{out}}/checkpoint.pt"),
    "with_forge_ref.py": ("--result-file", "{out}/step_12/__0_0.distcp"),
    "with_lightning.py": ("--result-cmd", f"{_TENSORS} {{out}}/last.ckpt"),
    "with_transformers.py": ("--result-file", "{out}/checkpoint-8/model.safetensors"),
    "ddp.py": ("--result-cmd", f"{_TENSORS} {{out}}/checkpoint.pt", "--ranks", "2"),
}
"""What it needs to be told for each script: the tensors of the last checkpoint, by which it sees a divergence.

The bytes of a file that `torch.save` has written would not do: they differ after a restart, with equal tensors.
"""


@dataclass(frozen=True)
class Said:
    """What the tool said of one script."""

    digest: str
    """Of the script."""
    verdicts: dict[str, int]
    """How many of its points had which verdict."""

    @property
    def cell(self) -> str:
        """The verdicts in words."""
        return ", ".join(f"{count} {word}" for word, count in sorted(self.verdicts.items()))


def kept() -> dict[str, Said]:
    """What it said of each script; exits if that is about another version than the pinned one, or other scripts."""
    found = json.loads(KEPT.read_text())
    if found["version"] != version():
        sys.exit(f"{KEPT.name} is of {NAME} {found['version']}, and {version()} is pinned: run rival.py --write.")
    said = {name: Said(**one) for name, one in found["scripts"].items()}
    for name in OPTIONS:
        if name not in said or said[name].digest != digest(name):
            sys.exit(f"{KEPT.name} is about another {name}: run rival.py --write {name}.")
    return said


def version() -> str:
    """The one that `constraints.txt` pins."""
    pins = (HERE.parent / "constraints.txt").read_text().splitlines()
    return next(line.removeprefix(f"{NAME}==") for line in pins if line.startswith(f"{NAME}=="))


def digest(name: str) -> str:
    """The digest of an example's text."""
    return hashlib.sha256((HERE / "scripts" / name).read_bytes()).hexdigest()


def ask(name: str) -> Said:
    """Let it judge one script."""
    script = HERE / "scripts" / name
    with tempfile.TemporaryDirectory() as where:
        report = Path(where) / "junit.xml"
        limits = ["--max-points", str(MOST_POINTS), "--timeout", "3600"]
        options = [*limits, "--fail-on", _VERDICTS, "--junit", str(report), *OPTIONS[name]]
        own = [sys.executable, "-m", "ckpt_chaos", "run", "--work", f"{where}/work", "--step-regex", r"step (\d+)"]
        done = subprocess.run(
            [*own, *options, "--", sys.executable, str(script), "{out}"], cwd=where, capture_output=True, text=True
        )
        if done.returncode not in (0, 1) or not report.is_file():
            sys.exit(f"{NAME} could not judge {name}:\n{done.stdout}{done.stderr}")
        return Said(digest(name), _counted(report, name))


def _counted(report: Path, name: str) -> dict[str, int]:
    """The verdicts on its points, which are those that are not the undisturbed run."""
    found = Counter[str]()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failure = case.find("failure")
        verdict = "PASS" if failure is None else failure.get("message", "").partition(":")[0]
        if not case.get("name", "").startswith("no crash"):
            found[verdict] += 1
        elif verdict != "PASS":
            sys.exit(f"{NAME} says {verdict} of two undisturbed runs of {name}, so its other verdicts mean nothing.")
    return dict(found)


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", nargs="*", metavar="SCRIPT", required=True, help="ask about these, or about all")
    names = parser.parse_args().write or list(OPTIONS)
    if importlib.util.find_spec("ckpt_chaos") is None or importlib.metadata.version(NAME) != version():
        sys.exit(f"{NAME} {version()} is not installed; ./with-tox run -e scripts installs it.")
    for name in names:
        said = asdict(ask(name))
        found = json.loads(KEPT.read_text()) if KEPT.exists() else {"scripts": {}}
        found["scripts"][name] = said
        found["version"] = version()
        KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
