"""Renders the specification as one Markdown document, for reading and for linking to a clause.

    python -m forge_spec.book               print it
    python -m forge_spec.book --write PATH  write it
    python -m forge_spec.book --check PATH  exit with 1 if the file says something else

Nothing is written twice: clauses, examples and terms come out of the specification, and the evidence for each clause
is computed from the files of a checkout: the one that PATH is in, or else the one that this package is in.
"""

import argparse
import ast
import difflib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import forge_spec
from forge_spec import evidence, front, terms
from forge_spec.clauses import CAPABILITIES, LEVELS, Clause
from forge_spec.evidence import Evidence, Mutant, Test

_Definition = ast.FunctionDef | ast.ClassDef


class NoCheckout(Exception):
    """There are no tests and mutants to read; the text says where they were looked for."""


@dataclass(frozen=True)
class Checkout:
    """The tests and mutants of a checkout, which the document links to."""

    root: Path
    tests: tuple[Test, ...]
    mutants: tuple[Mutant, ...]

    @classmethod
    def at(cls, root: Path) -> "Checkout":
        """Read the checkout whose top directory is `root`."""
        suite = (root / "tests" / "conformance", root / "tests" / "distributed")
        tests = (*evidence.tests_in(*suite), *evidence.folders_in(root / "fixtures"))
        return cls(root, tests, evidence.mutants_in(root / "fixtures" / "mutants"))

    @classmethod
    def around(cls, path: Path | None) -> "Checkout":
        """Read the checkout that holds `path` in a directory like `spec/`, or else the one that holds this package."""
        candidates = [*([path.resolve().parent.parent] if path else []), evidence.HERE.parent]
        for root in candidates:
            if (root / "fixtures" / "mutants").is_dir():
                return cls.at(root)
        looked = " and ".join(str(root) for root in candidates)
        raise NoCheckout(f"the book lists tests and mutants, and {looked} is not a checkout that has them")

    def link(self, path: Path, text: str) -> str:
        """Return a Markdown link from `spec/BOOK.md` to a file of the checkout."""
        return f"[`{text}`]({Path(os.path.relpath(path, self.root / 'spec')).as_posix()})"


def book(checkout: Checkout) -> str:
    """Return the whole document."""
    chapters = [_chapter(number, module, checkout) for number, module in enumerate(forge_spec.CHAPTERS, start=1)]
    return "\n\n".join(["# What a checkpoint manager must do", *_front(), _contents(), *chapters]) + "\n"


# -- the front matter -------------------------------------------------------------------


def _front() -> Iterator[str]:
    yield _prose(_idea(forge_spec))
    yield f"## Scope\n\n{front.SCOPE.strip()}"
    yield "## Terms and definitions\n\nOne word for one thing, and one meaning for each word."
    for topic, group in terms.GROUPS.items():
        yield f"### {topic}\n\n" + "\n".join(map(_term, group))
    yield _table("Levels", "`strict` contains `core`; `durable` contains both.", LEVELS.items())
    names = {f"`{name}`": meaning for name, meaning in CAPABILITIES.items()}
    yield _table("Capabilities", "A manager claims what it offers.", names.items())
    yield f"## How to claim conformance\n\n{front.CLAIM.strip()}"
    yield _table("Verdicts", "A report has one verdict for each clause.", front.VERDICTS.items())
    yield f"## Notation\n\n{front.NOTATION.strip()}"


def _term(term: terms.Term) -> str:
    exception = f" (except {term.not_used_except})" if term.not_used_except else ""
    not_used = f" *Not used:* {', '.join(term.not_used)}{exception}." if term.not_used else ""
    return f"- **{term.name}**: {term.meaning}{not_used}"


def _table(title: str, opening: str, rows: Iterable[tuple[object, str]]) -> str:
    lines = [f"## {title}", "", opening, "", "| | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {meaning} |" for name, meaning in rows)])


def _contents() -> str:
    lines = ["## Contents", ""]
    for number, module in enumerate(forge_spec.CHAPTERS, start=1):
        clauses = ", ".join(f"[{_short(clause)}](#{clause.slug})" for clause in module.CLAUSES)
        lines.append(f"{number}. [{_name(module)}](#{_name(module)}): {_title(module)}  \n   {clauses}")
    return "\n".join(lines)


def _short(clause: Clause) -> str:
    return clause.slug.partition(".")[2]


# -- the chapters -----------------------------------------------------------------------


def _chapter(number: int, module: ModuleType, checkout: Checkout) -> str:
    name = _name(module)
    clauses = list(_clauses(number, module, checkout))
    definitions = list(_definitions(ast.parse(inspect.getsource(module)).body, level=4))
    heading = f'<a id="{name}"></a>\n\n## {number}. {name.capitalize()}'
    opening = [heading, f"*{_title(module)}*", _prose(_idea(module))]
    return "\n\n".join([*opening, *clauses, "### Values and predicates", *definitions])


def _clauses(number: int, module: ModuleType, checkout: Checkout) -> Iterator[str]:
    sections: Mapping[str, str] = getattr(module, "SECTIONS", {module.CLAUSES[0].slug: "Clauses"})
    for place, clause in enumerate(module.CLAUSES, start=1):
        if clause.slug in sections:
            yield f"### {sections[clause.slug]}"
        yield _clause(f"{number}.{place}", clause, checkout)


def _clause(number: str, clause: Clause, checkout: Checkout) -> str:
    needs = ", ".join(f"`{capability}`" for capability in CAPABILITIES if capability in clause.capabilities)
    rests_on = ", ".join(f"[{slug}](#{slug})" for slug in clause.rests_on)
    notes = [f"*Why:* {clause.why}", f"*Judged when* {clause.situation}."]
    notes += [f"*Rests on* {rests_on}."] if rests_on else []
    found = evidence.of(clause, checkout.tests, checkout.mutants)
    return "\n".join(
        [
            f'<a id="{clause.slug}"></a>',
            "",
            f"**{number} {clause.slug}** ({clause.level}{f'; needs {needs}' if needs else ''})  ",
            f"A checkpoint manager {clause.sentence}.",
            "",
            "  \n".join(f"> {note}" for note in notes),
            "",
            f"<details><summary>Evidence: {_summary(found)}</summary>",
            "",
            *(f"- {line}" for line in _evidence(found, checkout)),
            "",
            "</details>",
        ]
    )


def _summary(found: Evidence) -> str:
    counts = {
        "predicate": len(found.predicates),
        "vector": sum(vectors.count for vectors in found.vectors),
        "test": len(found.tests),
        "mutant": len(found.mutants),
        "public issue": len(found.issues),
    }
    return ", ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items() if count)


def _evidence(found: Evidence, checkout: Checkout) -> Iterator[str]:
    spec = checkout.root / "spec"
    if found.predicates:
        yield "Predicates: " + ", ".join(
            checkout.link(spec / predicate.path.name, str(predicate)) for predicate in found.predicates
        )
    for vectors in found.vectors:
        file = checkout.link(
            checkout.root / "fixtures" / "vectors" / f"{vectors.chapter}.json", f"{vectors.chapter}.json"
        )
        where = checkout.link(spec / "questions" / vectors.corners_path.name, f"questions/{vectors.chapter}.py")
        corners = f"; corners in {where}: {', '.join(map(_code, vectors.corners))}" if vectors.corners else ""
        yield f"Vectors: {vectors.count} in {file}{corners}"
    if found.model:
        links = (checkout.link(spec / "model" / path.name, f"model/{path.name}") for path in found.model.paths)
        broken_by = ", ".join(map(_code, found.model.variants))
        invariants, variants = links
        yield f"Model: {found.model.sentence} ({invariants}); broken by {broken_by} ({variants})"
    yield "Tests: " + (", ".join(checkout.link(test.path, test.name) for test in found.tests) or "none")
    for mutant in found.mutants:
        cited = f" ({', '.join(f'[{issue}]({issue.url})' for issue in mutant.issues)})" if mutant.issues else ""
        yield f"Mutant {checkout.link(mutant.path, mutant.name)}: {mutant.mistake}{cited}"


def _code(text: str) -> str:
    return f"`{text}`"


def _definitions(body: Sequence[ast.stmt], level: int) -> Iterator[str]:
    """Everything public that has a docstring, in the order of the source."""
    for node, following in pairwise([*body, ast.Pass()]):
        if isinstance(node, _Definition) and not node.name.startswith("_") and (doc := ast.get_docstring(node)):
            yield f"{'#' * level} `{_signature(node)}`\n\n{_prose(doc)}"
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, level + 1)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(following, ast.Expr):
            meaning = inspect.cleandoc(ast.literal_eval(following.value))
            yield f"{'#' * level} `{ast.unparse(node)}`\n\n{_prose(meaning)}"


def _signature(node: _Definition) -> str:
    """How a caller writes it: the annotations as in the source, a dataclass with its fields."""
    if isinstance(node, ast.FunctionDef):
        returns = ast.unparse(node.returns) if node.returns else "None"
        if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
            return f"{node.name}: {returns}"
        arguments = ", ".join(part for part in ast.unparse(node.args).split(", ") if part != "self")
        return f"{node.name}({arguments}) -> {returns}"
    fields = [ast.unparse(field) for field in node.body if isinstance(field, ast.AnnAssign)]
    return f"{node.name}({', '.join(fields)})" if fields else node.name


def _prose(docstring: str) -> str:
    """A docstring as Markdown: blocks of examples become code, everything else is Markdown already."""
    blocks = docstring.strip().split("\n\n")
    return "\n\n".join(f"```pycon\n{block}\n```" if block.startswith(">>>") else block for block in blocks)


def _doc(module: ModuleType) -> str:
    return inspect.cleandoc(module.__doc__ or "")


def _title(module: ModuleType) -> str:
    return " ".join(_doc(module).partition("\n\n")[0].split())


def _idea(module: ModuleType) -> str:
    return _doc(module).partition("\n\n")[2]


def _name(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def drift(path: Path) -> list[str]:
    """Return the lines in which the file differs from the document, as a unified diff; none if it is up to date."""
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    document = book(Checkout.around(path))
    return list(
        difflib.unified_diff(written.splitlines(), document.splitlines(), str(path), "book()", n=1, lineterm="")
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.book", description="Render the specification.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", type=Path, metavar="PATH", help="write the document there")
    choice.add_argument("--check", type=Path, metavar="PATH", help="exit with 1 if that file is not the document")
    options = parser.parse_args(arguments)
    try:
        return _run(options.write, options.check)
    except NoCheckout as reason:
        print(reason, file=sys.stderr)
        return 1


def _run(write: Path | None, check: Path | None) -> int:
    if check:
        changed = drift(check)
        if changed:
            hint = f"{check} is out of date; renew it with: python -m forge_spec.book --write {check}"
            print(*changed[:20], hint, sep="\n", file=sys.stderr)
        return 1 if changed else 0
    document = book(Checkout.around(write))
    if write:
        write.write_text(document, encoding="utf-8")
    else:
        print(document, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
