"""Renders the specification as one Markdown document, for reading and for linking to a clause.

    python -m forge_spec.book               print it
    python -m forge_spec.book --write PATH  write it
    python -m forge_spec.book --check PATH  exit with 1 if the file says something else

Nothing is written twice: prose, clauses and examples come out of the chapters.
"""

import argparse
import ast
import difflib
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import forge_spec
from forge_spec.clauses import CAPABILITIES, WORDS, Clause, Level

_Definition = ast.FunctionDef | ast.ClassDef

_LEVELS = {
    Level.CORE: "what the design states outright: whoever claims its semantics passes it",
    Level.STRICT: "what a manager that is relied upon must do as well; each clause is a failure somebody met",
    Level.DURABLE: "what must hold after a loss of power, not only after a kill",
}


def book() -> str:
    """The whole document."""
    chapters = [_chapter(number, module) for number, module in enumerate(forge_spec.CHAPTERS, start=1)]
    parts = ["# What a training-checkpoint manager must do", _prose(_idea(forge_spec)), _how_to_read(), _contents()]
    return "\n\n".join([*parts, *chapters]) + "\n"


def _how_to_read() -> str:
    return "\n\n".join(
        [
            "## How to read a clause",
            "Each clause completes the sentence *A checkpoint manager …* and is known by its slug, which never "
            "changes; its number is its place in this document and may. *Judged when* names the situation that has "
            "to have arisen before a verdict counts. *Rests on* names the clauses without which this one can't hold. "
            "A clause that needs a capability which a manager does not claim is unclaimed there, never passed.",
            "**Levels.** Each contains the one before.",
            _list((f"*{level}*", meaning) for level, meaning in _LEVELS.items()),
            "**Words.** One for one thing.",
            _list((f"*{word}*", meaning) for word, meaning in WORDS.items()),
            "**Capabilities.**",
            _list((f"`{name}`", meaning) for name, meaning in CAPABILITIES.items()),
        ]
    )


def _list(items: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"- {term}: {meaning}" for term, meaning in items)


def _contents() -> str:
    lines = ["## Contents", ""]
    for number, module in enumerate(forge_spec.CHAPTERS, start=1):
        lines.append(f"{number}. [{_name(module)}](#{_name(module)}): {_title(module)}")
    return "\n".join(lines)


def _chapter(number: int, module: ModuleType) -> str:
    name = _name(module)
    clauses = [_clause(f"{number}.{place}", clause) for place, clause in enumerate(module.CLAUSES, start=1)]
    definitions = list(_definitions(ast.parse(inspect.getsource(module)).body, level=4))
    heading = f'<a id="{name}"></a>\n\n## {number}. {name.capitalize()}'
    opening = [heading, f"*{_title(module)}*", _prose(_idea(module))]
    return "\n\n".join([*opening, "### Clauses", *clauses, "### Values and predicates", *definitions])


def _clause(number: str, clause: Clause) -> str:
    needs = ", ".join(f"`{capability}`" for capability in CAPABILITIES if capability in clause.capabilities)
    rests_on = ", ".join(f"[{slug}](#{slug})" for slug in clause.rests_on)
    lines = [
        f'<a id="{clause.slug}"></a>',
        "",
        f"**{number} {clause.slug}** ({clause.level}{f'; needs {needs}' if needs else ''})  ",
        f"A checkpoint manager {clause.sentence}.",
        "",
        f"> *Why:* {clause.why}  ",
        f"> *Judged when* {clause.sometimes}.",
    ]
    if rests_on:
        lines[-1] += "  "
        lines.append(f"> *Rests on* {rests_on}.")
    return "\n".join(lines)


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
    """The lines in which the file differs from the document, as a unified diff; none if it is up to date."""
    written = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(difflib.unified_diff(written.splitlines(), book().splitlines(), str(path), "book()", n=1, lineterm=""))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its result is the exit status."""
    parser = argparse.ArgumentParser(prog="python -m forge_spec.book", description="Render the specification.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", type=Path, metavar="PATH", help="write the document there")
    choice.add_argument("--check", type=Path, metavar="PATH", help="exit with 1 if that file is not the document")
    options = parser.parse_args(arguments)
    if options.write:
        options.write.write_text(book(), encoding="utf-8")
        return 0
    if options.check:
        changed = drift(options.check)
        if changed:
            hint = f"{options.check} has drifted; renew it with: python -m forge_spec.book --write {options.check}"
            print(*changed[:20], hint, sep="\n", file=sys.stderr)
        return 1 if changed else 0
    print(book(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
