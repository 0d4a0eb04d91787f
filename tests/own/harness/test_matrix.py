"""The matrix: whatever it finds out about the suite is a line, and each gap fails the command.

One run over managers made for it has every kind of line; the rest is about findings that are written down here.
"""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from forge_conformance import __version__
from forge_conformance.commands.matrix import reported
from forge_conformance.judging.judge import ClauseFailure, Judge
from forge_conformance.judging.verdicts import Finding, Status
from forge_conformance.matrix import mutants
from forge_conformance.matrix.assertions import assertions, never_failed
from forge_conformance.matrix.mutants import BadMutant, Mutant
from forge_conformance.matrix.outcome import Base, End, Line, Matrix, Outcome
from forge_conformance.matrix.trial import Trial
from forge_conformance.plugin import found_out
from forge_conformance.runs.sources import fingerprint
from forge_fixtures import managers
from forge_spec import CLAUSES

Command = Any  # see conftest.py
BASE = Path(managers.__file__).with_name("honest.py")
OWN, OTHER = "resume.train-state", "commit.sync"


# -- a whole run ------------------------------------------------------------------------


def mutant(mistake: str, clause: str, changed: str = "") -> str:
    """The source of a manager that is made from the honest one."""
    says = f'"""{mistake}\n\nClause: {clause}\n"""\n'
    return f"{says}from honest import Honest, Loaded\n\nclass It(Honest):\n    pass\n{changed}\n"


MADE = {
    "killed": mutant("Off by one.", OWN, "    def load(self, *a):\n        return Loaded(super().load(*a).step + 1)"),
    "alive": mutant("Nothing is wrong with it.", "resume.dataloader"),
    "elsewhere": mutant("Never saves.", "resume.rng", "    def save(self, *a):\n        pass"),
    "fails_to_load": mutant("Is no good.", OWN, "    import no_such_module"),
    "says_nothing": '"""Has no clause."""\n',
    "slips": mutant("Has a slip.", OWN, "    def load(self, *a):\n        return lodaed"),
}


def test_every_gap_in_the_suite_is_a_line_and_what_is_no_mutant_is_our_error(forge: Command) -> None:
    folder = forge.folder / "mutants"
    folder.mkdir()
    for name, source in MADE.items():
        (folder / f"{name}.py").write_text(source)
    (folder / "honest.py").write_text(f'"""Its base.\n\nClause: {OTHER}\n"""\n' + BASE.read_text())
    clauses = [word for slug in (OWN, "resume.dataloader", "resume.rng") for word in ("--clause", slug)]
    ran = forge("matrix", "--mutants", str(folder), "--base", str(BASE), "-n", "2", *clauses)
    assert ran.status == Status.OUR_ERROR
    found = {line["text"].partition(": ")[0]: line["kind"] for line in _json(forge)["lines"] if line["fails"]}
    says_nothing = next(text for text in found if "says_nothing.py" in text)
    assert found == {
        "alive": "a mutant survives",
        "elsewhere": "a mutant fails by another clause",
        "fails_to_load": "an error of the suite",
        "slips": "an error of the suite",
        says_nothing: "an error of the suite",
        "resume.dataloader": "a clause that no mutant breaks",
        "resume.rng": "a clause that no mutant breaks",
    }
    ends = {one["name"]: one["end"] for one in _json(forge)["mutants"]}
    assert ends["killed"] == "killed"
    page = (forge.folder / "reports" / "matrix" / "matrix.html").read_text()
    assert [name for name in ("killed", "alive", "elsewhere", OWN, "Off by one.") if name not in page] == []
    assert "no_such_module" in ran.out and "lodaed" in ran.out


def test_a_mutant_that_is_wrong_everywhere_is_judged_by_all_tests_and_each_goes_on(forge: Command) -> None:
    folder = forge.folder / "mutants"
    folder.mkdir()
    lazy = '    claims = Claims("core", ("sync",))\n    def load(self, *a):\n        return Loaded()'
    source = mutant("Never resumes.", "resume.lands", lazy).replace("\n\nClause", "\n\nTests: all\nClause")
    (folder / "lazy.py").write_text(source.replace("Loaded\n", "Claims, Loaded\n"))
    (folder / "honest.py").write_text(f'"""Its base.\n\nClause: {OTHER}\n"""\n' + BASE.read_text())
    ran = forge("matrix", "--mutants", str(folder), "--base", str(BASE), "-n", "2", "--mutant", "lazy")
    assert ran.status == Status.PASSED, ran.said
    (lazy_one,) = _json(forge)["mutants"]
    assert lazy_one["tests"]["commit/the-second-save-of-a-step-is-the-one-that-counts[sync]"] == "failed"
    assert len({at for at in lazy_one["failed_at"] if at.startswith("test_commit.py")}) > 1


def _json(forge: Command) -> Any:
    return json.loads((forge.folder / "reports" / "matrix" / "matrix.json").read_text())


# -- findings that are written down -------------------------------------------------------


def finding(case: str, failing: str | None = None, seen: str = "", outcome: str = "", **reached: int) -> Finding:
    """What a test of `OWN` found out."""
    failure = None if failing is None else {"clause": failing, "seen": seen}
    arose = {slug.replace("_", "."): count for slug, count in reached.items()} or {OWN: 1}
    return Finding(case, (OWN, OTHER), arose, outcome or ("done" if failing is None else "failed"), 0.1, failure)


def matrix(*trials: tuple[Finding, ...], hung: frozenset[str] = frozenset(), own: str = "pass") -> Matrix:
    """A matrix about `OWN` alone, with a mutant for each of these trials."""
    base = Base("base", 0, {OWN: own}, {OWN: "there is no GPU" if own == "unreached" else ""}, 1.0)
    made = [Mutant(Path(f"mistake_{number}.py"), "A mistake.", (OWN,)) for number in range(len(trials))]
    outcomes = [Outcome(Trial(one, found, hung), base) for one, found in zip(made, trials, strict=True)]
    return Matrix(base, tuple(outcomes))


KILLS = (finding("resume/a-step[sync]", failing=OWN),)
SURVIVES = (finding("resume/a-step[sync]"),)


@pytest.mark.parametrize(
    "found,kinds,status",
    [
        (matrix(KILLS), set(), Status.PASSED),
        (matrix(KILLS, SURVIVES), {"a mutant survives"}, Status.FAILED),
        (matrix(KILLS, (finding("x", failing=OTHER),)), {"a mutant fails by another clause"}, Status.FAILED),
        (
            matrix((finding("x", failing=OTHER),)),
            {"a mutant fails by another clause", "a clause that no mutant breaks"},
            1,
        ),
        (matrix(), {"a clause that no mutant breaks"}, Status.FAILED),
        (matrix((*KILLS, finding("resume/idle[sync]"))), {"a test that has never killed anything"}, Status.PASSED),
        (matrix(KILLS, (finding("x", outcome="error"),)), {"an error of the suite"}, Status.OUR_ERROR),
        (matrix(KILLS, (finding("x", OWN, "load raised NameError: x"),)), {"an error of the suite"}, Status.OUR_ERROR),
    ],
    ids=["killed", "survivor", "elsewhere", "elsewhere-alone", "uncovered", "idle-test", "error", "slip"],
)
def test_each_gap_has_its_line_and_fails_the_command(found: Matrix, kinds: set[str], status: int) -> None:
    assert {line.kind for line in found.lines} >= kinds
    assert {line.kind for line in found.lines if line.fails} == kinds - {"a test that has never killed anything"}
    assert found.status == status


def test_what_nobody_can_reach_here_is_neither_killed_nor_a_survivor() -> None:
    unreached = (finding("gpu/pinned", outcome="unreached", commit_sync=0),)
    found = matrix(unreached, own="unreached")
    assert (found.outcomes[0].end, found.outcomes[0].because) == (End.NOT_JUDGED, "there is no GPU")
    assert ([line for line in found.lines if line.fails], found.status) == ([], Status.PASSED)
    assert matrix(unreached).outcomes[0].end is End.SURVIVES, "the base reaches it, so the mutant hides from it"


def test_a_test_that_could_never_be_tried_says_why() -> None:
    reason = replace(finding("gpu/pinned[async]", outcome="unreached"), reason="there is no GPU")
    assert matrix(KILLS, (reason, finding("resume/idle[sync]"))).tests_that_killed_nothing == [
        "gpu/pinned (unreached: there is no GPU)",
        "resume/idle",
    ]


def test_a_death_by_a_hang_says_so() -> None:
    found = matrix(KILLS, hung=frozenset({"resume/a-step[sync]"}))
    assert found.outcomes[0].because.startswith("a hang, ")


def test_a_base_that_falls_fails_the_gate() -> None:
    failed = Base("base", 1, {OWN: "fail"}, {}, 1.0)
    found = Matrix(failed, (Outcome(Trial(Mutant(Path("mistake.py"), "A mistake.", (OWN,)), KILLS), failed),))
    assert found.lines == [Line("the base fails", f"base, which has to be right: {OWN}")]
    assert found.status == Status.FAILED


# -- assertions ---------------------------------------------------------------------------

TEST = """
def test_a_step(run):
    run.expect("commit.sync", True, expected="", seen="")
    with run.expect_error(
        "commit.sync"
    ):
        _look(run)

class Look:
    def at(self):
        self.judge.record_failure("commit.sync", expected="", seen="")
"""


def test_an_assertion_that_nothing_came_from_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(TEST)
    every = list(assertions([tmp_path]))
    assert list(map(str, every)) == [
        "test_made.py:3 in test_a_step",
        "test_made.py:4 in test_a_step",
        "test_made.py:11 in Look",
    ]
    assert never_failed(every, [("test_made.py", 5), ("test_made.py", 7), ("test_other.py", 3)]) == [every[0], every[2]]


def test_a_test_that_goes_on_knows_all_that_fell_and_the_first_is_its_verdict() -> None:
    judge = Judge((OWN, OTHER), lambda slug: True, goes_on=True)
    judge.expect(OWN, True, expected="this", seen="this")
    judge.expect(OTHER, False, expected="the first", seen="another")
    judge.record_failure(OWN, expected="the second", seen="another")
    found = found_out(judge, KeyError("what comes of going on"))
    assert (found["outcome"], found["failure"]["expected"]) == ("failed", "the first")
    (module, first), (_, second) = judge.failed_at
    assert (module, second - first) == ("test_matrix.py", 1)


def test_a_test_that_does_not_go_on_ends_with_what_falls() -> None:
    judge = Judge((OWN,), lambda slug: True)
    with pytest.raises(ClauseFailure) as failed:
        judge.expect(OWN, False, expected="the first", seen="another")
    assert found_out(judge, failed.value)["failure"]["expected"] == "the first"


# -- the mutants themselves ---------------------------------------------------------------


def test_every_clause_has_a_mutant_of_its_own_and_every_mutant_says_what_it_has_to() -> None:
    every = [mutants.read(path) for path in mutants.files(mutants.HERE)]
    missing = {clause.slug for clause in CLAUSES} - {one.own.slug for one in every}
    assert missing == set()
    assert [one.name for one in every if not one.mistake.endswith(".")] == []


@pytest.mark.parametrize(
    "source,says",
    [
        ('"""No clause."""', "has no line `Clause: ...`"),
        ('"""Clause: commit.snyc"""', "names commit.snyc"),
        ('"""Clause: commit.sync\nLevel: heroic"""', "heroic"),
        ('"""Clause: commit.sync\nBase: bases/nobody.py"""', "there is no"),
        ('"""Clause: commit.sync\nTests: some"""', "write `Tests: all`"),
        ("def", "can't be read"),
    ],
)
def test_a_file_that_does_not_say_what_it_has_to_is_refused_by_name(tmp_path: Path, source: str, says: str) -> None:
    path = tmp_path / "mistake.py"
    path.write_text(source)
    with pytest.raises(BadMutant, match=r"mistake\.py") as refusal:
        mutants.read(path)
    assert says in str(refusal.value)


@pytest.fixture
def bases() -> ModuleType:
    """What mutants are made with."""
    spec = importlib.util.spec_from_file_location("bases", mutants.HERE / "bases" / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keeps(limit: int, names: list[str]) -> list[str]:
    """What a mutant changes here."""
    return names[-limit:]


def test_a_change_is_made_where_the_function_already_is_and_refused_where_it_is_gone(bases: ModuleType) -> None:
    imported: Callable[..., list[str]] = keeps
    bases.edit(keeps, "[-limit:]", "[:limit]")
    assert imported(1, ["old", "new"]) == ["old"]
    with pytest.raises(LookupError, match=r"keeps has 0 times '\[-limit:\]', not once"):
        bases.edit(keeps, "[-limit:]", "[:limit]")
    with pytest.raises(AttributeError):
        bases.change(Status, "no_such_name")


def test_a_report_of_the_base_counts_only_for_the_code_that_was_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base.py"
    base.write_text("saves = True")
    says = {"implementation": {"name": str(base)}, "suite_version": __version__, "level": "core", "is_partial": False}
    verdict = {"slug": OWN, "verdict": "pass", "reason": ""}
    written = tmp_path / "report.json"
    assert reported(str(base), [], written) is None
    assert "There is no" in capsys.readouterr().err
    report = {**says, "clauses": [verdict], "exit_status": 0, "seconds": 1, "errors": [], "tests": []}
    written.write_text(json.dumps({**report, "sources": fingerprint(str(base))}))
    found = reported(str(base), [], written)
    assert found is not None
    assert found.verdicts == {OWN: "pass"}
    base.write_text("saves = False")
    assert reported(str(base), [], written) is None
    assert "is of other code" in capsys.readouterr().err


def test_a_base_that_can_not_be_imported_ends_the_command(forge: Command) -> None:
    ran = forge("matrix", "--base", "no.such.module", "--mutant", "never_saves")
    assert ran.status == Status.NOTHING_JUDGED
    assert "no.such.module" in ran.said


def test_a_base_is_tried_also_by_a_clause_that_comes_first_in_no_test(forge: Command) -> None:
    ran = forge("matrix", "--mutant", "job_deletes_before_it_saves")
    assert ran.status == Status.PASSED, ran.said
    assert "killed by script.keeps-work" in ran.out


def test_a_flush_whose_error_training_raises_is_not_blamed_on_the_groups(forge: Command) -> None:
    case = "saves/training-and-back-to-back-saves-*"
    mutant = mutants.HERE / "late_flush_ends_training.py"
    ran = forge.run(str(mutant), options=("--case", case, "--ranks", "2", "--level", "core"))
    own, *others = mutants.read(mutant).clauses
    assert (own, others, ran.status) == ("commit.no-later-than", [], Status.FAILED), ran.said
    assert (ran.verdicts[own], ran.verdicts["commit.own-group"]) == ("fail", "unreached")


def test_explain_names_the_mutants_of_a_clause(forge: Command) -> None:
    ran = forge("explain", "commit.deferred")
    assert "latest_moves_at_dispatch: Points `latest` at a checkpoint when its save is dispatched." in ran.said
