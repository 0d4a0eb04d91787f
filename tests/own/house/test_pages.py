"""Every page is true where a program can check it: links, commands, options, the picture, and the words.

A page is what a user reads: README, docs/, CONTRIBUTING, CHANGELOG, the book, and the pages of fixtures and protocol.
"""

import configparser
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from forge_conformance.runs.server import HOST
from forge_conformance.runs.verdict import WORDS
from forge_spec import CLAUSES
from forge_spec.clauses import Level

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "tox.ini").is_file())
OTHER_PROGRAMS = {"mutation": ["tests/own/mutation/run.py"], "bench": ["benchmarks/page.py"]}
"""What tox runs in these environments, with what stands after `--`; in others it is the suite."""
BOOK = ROOT / "spec" / "BOOK.md"
WRITTEN = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "fixtures/README.md")),
    ROOT / "tests" / "conformance" / "PROTOCOL.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
"""The pages that people write; the book is rendered."""
OF_OTHERS = {
    "cd": 1,
    "cp": 1,
    "docker": 1,
    "git": 1,
    "pip": 1,
    "pytest": 1,
    "export": 1,
    ".ci/run": 1,
    ".tox/tests/bin/pytest": 1,
}
"""Commands that are not ours, or have no options of ours."""
METAPHORS = (
    r"in earnest",
    r"\b(fell|fallen|felled)\b",
    r"\bfalls? (by|of|with)\b",
    r"\b(is|are|was|were) told\b",
    r"\btells? of\b",
    r"\b(is|are) no numbers?\b",
    r"is no (path|verdict|manager|file|text)\b",
    r"\bsins?\b",
    r"\b(process|earlier|a|new|real) li(fe|ves)\b",
    r"\bdies? of\b",
    r"ways? to be bad",
)
"""Private words of this project, each of which has a standard one."""


def _outside_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


@cache
def _anchors(page: Path) -> set[str]:
    """What GitHub makes of headings, and those that are written out."""
    text = page.read_text()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", outside, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found[slug] = found.get(slug, 0) + 1
    repeated = {f"{slug}-{number}" for slug, times in found.items() for number in range(1, times)}
    return {*found, *repeated, *re.findall(r'<a id="([^"]+)"', text)}


def _broken(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", _outside_code(page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            yield f"{link}: nothing is there"
        elif anchor and not _has(target, anchor):
            yield f"{link}: no such heading"


def _has(page: Path, anchor: str) -> bool:
    return page.suffix == ".md" and anchor in _anchors(page)


@pytest.mark.parametrize("page", [*WRITTEN, BOOK], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert list(_broken(page)) == []


def _commands(page: Path) -> list[str]:
    """Indented lines, lines of fenced blocks for a shell, and code within a line, where they begin like a command."""
    text = page.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    fenced = [block for language, block in blocks if language in ("", "sh")]
    outside = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [match[1] for match in re.finditer(r"^ {4,7}(?! )(\S.*)$", outside, re.MULTILINE) if _is_one(match[1])]
    lines += [code for code in re.findall(r"`([^`\n]+)`", outside) if " " in code and _is_one(code)]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.strip() and not line.startswith("#")]


def _is_one(text: str) -> bool:
    return re.match(r"(\./with-tox|forge-conformance|python|tox|pip|pytest)\b", text) is not None


@cache
def _help(*command: str) -> str:
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)} --help: {done.stderr}"
    return done.stdout


def _environments() -> dict[str, str]:
    """The label of each environment of tox; empty for those that have none."""
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    return {name: tox.get(f"testenv:{name}", "labels", fallback="") for name in _named(tox.sections())}


def _named(sections: Iterable[str]) -> list[str]:
    return [name.removeprefix("testenv:") for name in sections if name.startswith("testenv:")]


def _meant(words: Sequence[str]) -> list[str]:
    """The environments, known or not, that the words after `tox run` choose: by name with -e, by label with -m."""
    if words[:1] == ["-m"]:
        return [name for name, label in _environments().items() if label == words[1]]
    return words[1].split(",") if words[:1] == ["-e"] else []


def _wrong(command: str) -> str | None:
    """What is wrong with a command that a page shows; None if nothing is."""
    words = shlex.split(command)
    while words and re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    first, rest = words[0], words[1:]
    if first in OF_OTHERS:
        return None
    if first == "./with-tox":
        names = _meant(rest[1:])
        unknown = [name for name in names if name not in _environments()]
        if unknown or (rest and not names):
            return f"{command}: not in tox.ini: {', '.join(unknown) or rest}"
        return _of_environment(command, names, rest[3:])
    if first == "forge-conformance":
        shown = _help(sys.executable, "-m", "forge_conformance.cli")
        if rest and rest[0].startswith("-"):
            return _unknown(command, shown, rest)
        if rest and f"\n    {rest[0]} " not in shown:
            return f"{command}: there is no command {rest[0]}"
        return _unknown(command, _help(sys.executable, "-m", "forge_conformance.cli", *rest[:1]), rest)
    if first == "python":
        program = rest[:2] if rest[:1] == ["-m"] else rest[:1]
        return _unknown(command, _help(sys.executable, *program), rest[len(program) :])
    return f"{command}: {first} is not a known command"


def _of_environment(command: str, names: list[str], rest: list[str]) -> str | None:
    if rest[:1] != ["--"]:
        return f"{command}: {rest} after the environment, without --" if rest else None
    program = OTHER_PROGRAMS.get(",".join(names), ["-m", "forge_conformance.cli", "run"])
    return _unknown(command, _help(sys.executable, *program), rest[1:])


def _unknown(command: str, shown: str, words: list[str]) -> str | None:
    options = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)]
    unknown = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown)]
    return f"{command}: --help does not know {', '.join(unknown)}" if unknown else None


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_a_page_shows_exists_with_its_options(page: Path) -> None:
    assert [wrong for command in _commands(page) if (wrong := _wrong(command))] == []


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """In code, and as an argument of pytest or Python; from the root, or from where the page is."""
    words = [word for code in re.findall(r"`([^`\n]+)`", page.read_text()) for word in code.split()]
    words += [word for command in _commands(page) for word in command.split()]
    ours = r"(tests|spec|fixtures|docs|benchmarks|forge_ref)/[\w/.-]*$|[\w.-]+(/[\w.-]+)+\.py$"
    named = {word for word in words if re.match(ours, word) and not word.startswith("reports/")}
    there = {path for path in named if (ROOT / path).exists() or (page.parent / path).exists()}
    assert sorted(named - there) == []


def test_a_command_that_does_not_exist_is_noticed() -> None:
    assert _wrong("./with-tox run -e no-such-environment")
    assert _wrong("./with-tox run -m no-such-label")
    assert _wrong("forge-conformance prove --impl mine.py:Mine")
    assert _wrong("forge-conformance run --implementation mine.py:Mine")
    assert _wrong("python -m forge_spec.book --print")
    assert _wrong("make all")


def test_every_option_that_a_page_names_exists() -> None:
    """In the text, where an option stands without its command."""
    ours = [
        ("-m", "forge_conformance.cli", name)
        for name in ("smoke", "run", "crash", "script", "matrix", "table", "list", "explain")
    ]
    others = [
        ("docs/picture.py",),
        ("benchmarks/run.py",),
        ("benchmarks/page.py",),
        ("-m", "forge_spec.model.explore"),
        ("-m", "forge_spec.vectors"),
        ("tests/own/mutation/run.py",),
    ]
    shown = "".join(_help(sys.executable, *program) for program in [*ours, *others])
    named = {option for page in WRITTEN for option in re.findall(r"`(--[a-z][a-z-]+)", page.read_text())}
    assert len(named) > 20
    of_pytest = {"--forge-claims", "--forge-go-on", "--pyargs", "--forge-impl"}
    assert sorted(option for option in named - of_pytest if f"{option} " not in re.sub(r"[\],=\n]", " ", shown)) == []


def test_the_readme_is_short_and_its_table_of_costs_has_every_environment() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 120
    costs = text[text.index("## What the commands cost") :].partition("\n## ")[0]
    chosen = re.findall(r"`\./with-tox run (-[em]) ([\w,-]+)`", costs)
    named = {name for words in chosen for name in _meant(list(words))}
    assert named == _environments().keys() - {"lint", "tests"}
    assert "`./with-tox`" in costs


def test_the_changelog_counts_the_clauses() -> None:
    durable = [clause for clause in CLAUSES if clause.level == Level.DURABLE]
    chapters = {clause.slug.partition(".")[0] for clause in CLAUSES if clause.level < Level.DURABLE}
    counted = f"{len(CLAUSES) - len(durable)} clauses at the levels core and strict in {len(chapters)} chapters"
    assert f"{counted}, and {len(durable)} at level durable" in (ROOT / "CHANGELOG.md").read_text()


def test_the_page_about_crash_has_the_words_of_every_verdict() -> None:
    page = (ROOT / "docs" / "crash.md").read_text()
    table = page[page.index("| verdict | meaning |") :].partition("\n\n")[0].splitlines()[2:]
    assert table == [f"| {word} | {meaning} |" for word, meaning in WORDS.items()]


def test_the_picture_in_the_readme_is_what_the_suite_reports_today(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HOST, host)
    done = subprocess.run([sys.executable, "docs/picture.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_has_the_private_metaphors_of_this_project(page: Path) -> None:
    text = re.sub(r"\s+", " ", _outside_code(page.read_text()))
    found = [match[0] for words in METAPHORS for match in re.finditer(words, text, re.IGNORECASE)]
    assert found == []
