"""`forge-conformance list` and `explain`: the clauses, what each asks and why, and what stands behind it."""

import argparse

from forge_conformance.commands import options as shared
from forge_conformance.report import explain as page
from forge_spec import BY_SLUG
from forge_spec.clauses import Level

LIST_HELP = "list the clauses, the capabilities or the traits"
EXPLAIN_HELP = "explain one clause: sentence, reason, predicates, vectors, tests and mutants"


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `list`."""
    parser.add_argument("--level", help="only clauses up to this level")
    parser.add_argument(
        "--capabilities", action="store_true", help="list the capabilities that a manager may claim, instead of clauses"
    )
    parser.add_argument(
        "--traits", action="store_true", help="list the traits that an adapter may declare, instead of clauses"
    )


def add_explain_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `explain`."""
    parser.add_argument("slug", metavar="SLUG", help="the clause, as `list` names it")


def list_all(options: argparse.Namespace) -> int:
    """Print the clauses, the capabilities or the traits."""
    if options.traits:
        print(*page.traits(), sep="\n")
        return 0
    level = Level.DURABLE if options.level is None else shared.level(options.level)
    print(*(page.capabilities() if options.capabilities else page.listed(level)), sep="\n")
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print one clause."""
    slugs = shared.clauses([options.slug]) or frozenset()
    if len(slugs) > 1:
        raise shared.BadArgument(f"{options.slug!r} matches {len(slugs)} clauses; name one.")
    (slug,) = slugs
    print(*page.explained(BY_SLUG[slug]), sep="\n")
    return 0
