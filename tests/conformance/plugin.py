"""The pytest plugin: selects what an implementation claims, gives each test a scenario, records verdicts.

It does nothing at all without `--forge-impl`, and imports no torch.  The
command `forge-conformance run` is the usual way in; plain pytest works too:

    pytest --pyargs forge_conformance --forge-impl their.package.checkpoint

Each test's report carries what it found out as the user property `forge`, so
that verdicts survive xdist and are computed in one place (`judging.verdicts`).
"""

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import forge_distributed
from forge_conformance.judging.judge import JUDGES, CannotJudge, ClauseFailure, Judge, Judges, Unreached
from forge_conformance.judging.verdicts import MODES, Finding, foundations, is_case, unjudged_claims
from forge_conformance.runs import machine
from forge_conformance.runs.folder import Folder
from forge_conformance.runs.group import ALONE, Shape
from forge_conformance.runs.machine import MachineLacks
from forge_conformance.runs.process import Died, Hung, ManagerFault, Raised, Unsupported, WrongAnswer
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.server import Server
from forge_conformance.runs.timeline import Timeline
from forge_spec import BY_SLUG
from forge_spec.clauses import CAPABILITIES, Level

SUITE = (Path(__file__).parent, Path(forge_distributed.__file__).parent)
"""Where the tests are."""
_HERE = SUITE[0]
SUITE_ARGUMENTS = ["-c", str(_HERE / "pytest.ini"), f"--rootdir={_HERE}", *map(str, SUITE)]
"""What pytest is told to run the suite, whatever the directory that it is run from has configured."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("forge-conformance", "judge a checkpoint manager")
    group.addoption("--forge-impl", help="the manager: a module, module:Adapter, or file.py:Adapter")
    group.addoption("--forge-python", help="Python in which the manager is installed (default: this one)")
    group.addoption("--forge-level", help="core, strict or durable (default: what is claimed)")
    group.addoption("--forge-claims", help="capabilities, comma-separated, instead of what is claimed")
    group.addoption("--forge-timeout", type=float, default=20.0, help="seconds until a command counts as hung")
    group.addoption("--forge-import-timeout", type=float, default=120.0, help="seconds until an import counts as hung")
    group.addoption("--forge-clauses", help="only tests that judge one of these, comma-separated")
    group.addoption("--forge-cases", action="append", help="only tests whose name in reports matches; repeatable")
    group.addoption("--forge-device", default="cpu", help="device: cpu or cuda")
    group.addoption("--forge-door", default="", help="where the server is that has imported the manager already")
    group.addoption("--forge-ranks", default="2,4", help="how many ranks distributed runs have, comma-separated")
    group.addoption("--forge-examples", type=int, default=0, help="random programs to try (default: the usual few)")
    group.addoption(
        "--forge-no-shrinking", action="store_true", help="report a failing random program without shrinking it"
    )
    group.addoption(
        "--forge-go-on",
        action="store_true",
        help="continue a test after a clause has failed; the first failure is the verdict",
    )


WARM_SERVER = pytest.StashKey[Server]()
"""Where the command leaves the server of its first contact, so that its imports are paid for once."""
LOST = "forge_lost"
"""The key of why a process of xdist could not judge, in what it leaves to the controlling one."""


class Findings:
    """A pytest plugin of the process that controls a run: gathers what tests found out."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.lost: list[str] = []
        """Tests that ended without a finding: our errors."""

    def gathers(self, values: dict[str, Any]) -> None:
        """One test has ended with these values."""
        self.findings.append(Finding.of(values))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        values = dict(report.user_properties).get("forge")
        if isinstance(values, dict):
            self.gathers(values)
        elif report.failed:
            self.lost.append(f"{report.nodeid}: {report.longrepr}")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.lost.append(f"{report.nodeid} could not be collected: {report.longrepr}")


class Session:
    """One pytest process: its warm server, started when it is first needed, and the timelines."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._server: Server | None = None
        self._timelines: dict[tuple[int, Shape, str | None], Timeline] = {}
        self._has_rehearsed_ranks = False

    @property
    def server(self) -> Server:
        """The warm server; ends pytest with the reason if there is none."""
        if self._server is None:
            option = self._config.getoption
            timeouts = (option("--forge-timeout"), option("--forge-import-timeout"))
            warm = self._config.stash.get(WARM_SERVER, None)
            impl, python, device = option("--forge-impl"), option("--forge-python"), option("--forge-device")
            try:
                self._server = warm or Server(impl, python, *timeouts, device, door=option("--forge-door"))
            except (CannotJudge, MachineLacks) as reason:
                if hasattr(self._config, "workeroutput"):  # xdist does not pass on why one of its processes ended
                    self._config.workeroutput[LOST] = str(reason)
                pytest.exit(f"forge-conformance: {reason}", returncode=pytest.ExitCode.USAGE_ERROR)
            self._server.rehearse([mode for mode in MODES if mode in self.capabilities])
        return self._server

    @property
    def capabilities(self) -> frozenset[str]:
        """What the implementation is held to."""
        claims = self._config.getoption("--forge-claims")
        return frozenset(claims.split(",")) if claims else self.server.implementation.capabilities

    @property
    def level(self) -> Level:
        """The level it is judged at."""
        return Level.named(self._config.getoption("--forge-level") or self.server.implementation.level)

    def timeline(self, seed: int, shape: Shape = ALONE, variety: str | None = None) -> Timeline:
        """Made once for each of these, because nothing can disturb it; it lives as long as the session."""
        key = (seed, shape, variety)
        if key not in self._timelines:
            self._timelines[key] = Timeline(self.server, *key)
        return self._timelines[key]

    def rehearse_ranks(self) -> None:
        """Let the server import what several ranks need, once."""
        if not self._has_rehearsed_ranks:
            self._has_rehearsed_ranks = True
            self.server.rehearse([mode for mode in MODES if mode in self.capabilities][:1], with_ranks=True)

    @property
    def ranks(self) -> list[int]:
        """How many ranks distributed runs have."""
        return [int(number) for number in self._config.getoption("--forge-ranks").split(",") if number]

    @property
    def shapes(self) -> list[Shape]:
        """How runs divide their work: in every way by the fewest ranks, in shards and in stages by all numbers."""
        few = [Shape(min(self.ranks), kind) for kind in ("replicated", "tensor")] if self.ranks else []
        staged = [Shape(ranks, stages=2) for ranks in self.ranks if ranks % 2 == 0 and "pipeline" in self.capabilities]
        return [*(Shape(ranks) for ranks in self.ranks), *few, *staged]

    @property
    def teams(self) -> list[Shape]:
        """Those of the shapes that differ in how ranks coordinate: shards alone, and stages of several ranks each."""
        return [shape for shape in self.shapes if shape.kind == "sharded" and shape.stages in (0, shape.ranks // 2)]

    def is_judged(self, slug: str) -> bool:
        """Whether the level and the claims cover this clause."""
        clause = BY_SLUG[slug]
        return clause.level <= self.level and clause.capabilities <= self.capabilities

    def wants(self, declared: Judges) -> bool:
        """Whether a test that judges this fits the level, the claims and what was asked for."""
        only = self._config.getoption("--forge-clauses")
        asked = only is None or not set(only.split(",")).isdisjoint(declared.clauses)
        implementation = self.server.implementation
        own = implementation.hooked_layout if "ephemeral" in declared.needs else implementation.layout
        fits = declared.layout in (None, own)
        return asked and fits and declared.needs <= self.capabilities and self.is_judged(declared.clauses[0])

    def close(self) -> None:
        """Ends the server with all its workers."""
        if self._server is not None:
            self._server.close()


_SESSION = pytest.StashKey[Session]()
_JUDGE = pytest.StashKey[Judge]()


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--forge-impl"):
        try:
            Level.named(config.getoption("--forge-level") or "core")
        except ValueError as error:
            raise pytest.UsageError(f"--forge-level: {error}") from None
        claims = frozenset(filter(None, (config.getoption("--forge-claims") or "").split(",")))
        unknown = ", ".join(sorted(claims - CAPABILITIES.keys()))
        refusal = f"there is no capability {unknown}" if unknown else unjudged_claims(claims)
        if refusal:
            raise pytest.UsageError(f"--forge-claims: {refusal}")
        config.stash[_SESSION] = Session(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SESSION in config.stash:
        config.stash[_SESSION].close()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The suite's tests mean nothing without a manager to judge."""
    inside = collection_path.name.startswith("test_") and collection_path.parent in SUITE
    return True if inside and _SESSION not in config.stash else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What tests are run for each of.

    `mode`: claimed ways to save; `any_mode`: the pinned one as well;
    `flush_mode`: those with a background flush; `ranks`: the numbers of ranks
    that were asked for; `fewest`: the least of them; `shape`: these, and each way to divide the work;
    `team`: the same with shards only, and in stages where these have several ranks.
    """
    wanted = {"mode": MODES[:2], "any_mode": MODES, "flush_mode": MODES[1:]}
    session = metafunc.config.stash.get(_SESSION, None)
    if "ranks" in metafunc.fixturenames and session is not None:
        metafunc.parametrize("ranks", session.ranks)
    if "fewest" in metafunc.fixturenames and session is not None:
        metafunc.parametrize("fewest", session.ranks and [min(session.ranks)])
    if "shape" in metafunc.fixturenames and session is not None:
        metafunc.parametrize("shape", session.shapes, ids=[shape.label for shape in session.shapes])
    if "team" in metafunc.fixturenames and session is not None:
        metafunc.parametrize("team", session.teams, ids=[shape.label for shape in session.teams])
    for name, modes in wanted.items():
        if name in metafunc.fixturenames and session is not None:
            metafunc.parametrize(name, [mode for mode in modes if mode in session.capabilities])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep what the level and the claims ask for."""
    session = config.stash.get(_SESSION, None)
    if session is None:
        return
    patterns = config.getoption("--forge-cases") or ["*"]
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        declared = declared_by(item)
        is_asked = any(is_case(case_of(item), pattern) for pattern in patterns)
        wanted = declared is None or (session.wants(declared) and is_asked)
        unset = any(mark.name == "skip" for mark in item.iter_markers())  # parametrised over no claimed mode at all
        (kept if wanted and not unset else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def declared_by(item: pytest.Item) -> Judges | None:
    """What a test says that it judges."""
    declared: Judges | None = getattr(getattr(item, "function", None), JUDGES, None)
    return declared


def case_of(item: pytest.Item) -> str:
    """The test's name in reports and expected failures: chapter/what-it-shows[parameters]."""
    chapter = item.path.stem.removeprefix("test_")
    name = re.sub(r"^test_", "", item.name).replace("_", "-")
    return f"{chapter}/{name}"


@pytest.fixture
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scenario]:
    """The scenario of this test: an empty folder and a warm server."""
    scenario = new_scenario(request, tmp_path)
    yield scenario
    scenario.end()


@pytest.fixture
def fresh_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Makes scenarios, for tests that need one per random example; the judge and its counts are shared."""
    made: list[Scenario] = []

    def make() -> Scenario:
        for scenario in made:
            scenario.end()
        made[:] = [new_scenario(request, tmp_path_factory.mktemp("example"))]
        made[0].judge.story.clear()
        made[0].judge.events.clear()
        return made[0]

    yield make
    for scenario in made:
        scenario.end()


def new_scenario(request: pytest.FixtureRequest, directory: Path) -> Scenario:
    """A scenario over an empty folder below `directory`."""
    session = request.config.stash[_SESSION]
    declared = declared_by(request.node)
    assert declared is not None, f"{request.node.name} does not say what it judges"
    if _JUDGE not in request.node.stash:
        goes_on = request.config.getoption("--forge-go-on")
        request.node.stash[_JUDGE] = Judge(declared.clauses, session.is_judged, goes_on)
    path = directory / "checkpoints"
    path.mkdir()
    folder = Folder(path.resolve(), session.server.implementation.layout)
    request.node.stash[_JUDGE].folder = str(folder.path)
    if "distributed" in declared.needs:
        session.rehearse_ranks()
    return Scenario(
        session.server,
        folder,
        request.node.stash[_JUDGE],
        session.timeline,
        session.capabilities,
        session.level,
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    declared = declared_by(item)
    if declared is not None and (report.when == "call" or report.failed):
        judge = item.stash.get(_JUDGE, None) or Judge(declared.clauses, lambda slug: True)
        found = unless_our_own(found_out(judge, call.excinfo.value if call.excinfo else None), judge.folder)
        if found.get("hung") and _SESSION in item.config.stash:
            item.config.stash[_SESSION].server.hangs += 1
        values = {"case": case_of(item), "seconds": report.duration, "failed_at": list(judge.failed_at)}
        values |= {"events": sorted(judge.events)}
        report.user_properties.append(("forge", {**values, **found}))
        if "failure" in found:
            report.longrepr = explain(found["failure"])
    return report


def unless_our_own(found: dict[str, Any], folder: str | None) -> dict[str, Any]:
    """The same, but a failure on a machine that lacks what every manager needs says nothing of this one."""
    if found["outcome"] != "failed" or folder is None:
        return found
    try:
        machine.check(Path(folder).parent)
    except MachineLacks as lack:
        kept = {key: found[key] for key in ("clauses", "reached")}
        return {
            **kept,
            "outcome": "error",
            "reason": f"{lack} The manager then failed: {found['failure']['seen'][:200]}",
        }
    return found


def found_out(judge: Judge, error: BaseException | None) -> dict[str, Any]:
    """What a test found out, as plain values: counts, and the failure if there is one."""
    found: dict[str, Any] = {"clauses": list(judge.clauses), "reached": dict(judge.reached)}
    cause = _cause(error)
    if judge.goes_on and judge.first is not None:
        cause = ClauseFailure(judge.first)
    match cause:
        case None:
            return {**found, "outcome": "done"}
        case ClauseFailure(failure=failure):
            seen = {"clause": failure.clause, "expected": failure.expected, "seen": failure.seen}
            told = {**seen, "story": failure.story, "detail": failure.detail}
            return {**found, "outcome": "failed", "events": sorted(failure.events), "failure": told}
        case ManagerFault():
            detail = cause.traceback if isinstance(cause, Raised) else ""
            expected = _expected(cause)
            fault = _fault(judge, str(cause), expected, detail=detail, is_about_act=not isinstance(cause, WrongAnswer))
            how = {"hung": isinstance(cause, Hung), "is_of_a_call": not isinstance(cause, WrongAnswer)}
            return {**found, "outcome": "failed", **how, "failure": fault}
        case Unsupported():
            fault = _fault(judge, str(cause), expected=_POSSIBLE)
            return {**found, "outcome": "failed", "is_of_a_call": True, "failure": fault}
        case FileNotFoundError(filename=name) | NotADirectoryError(filename=name) if _is_below(name, judge.folder):
            fault = _fault(judge, f"{name}: {cause.strerror}", expected="the file, which the layout promises")
            return {**found, "outcome": "failed", "failure": fault}
        case Unreached():
            return {**found, "outcome": "unreached", "reason": str(cause)}
        case CannotJudge():
            return {**found, "outcome": "error", "reason": str(cause)}
        case _:
            return {**found, "outcome": "error", "reason": f"{type(cause).__name__}: {cause}"}


_POSSIBLE = (
    "the call to be possible: it belongs to what is claimed; or a trait of the adapter that says why it is not "
    "(forge-conformance list --traits)"
)


def _is_below(name: object, folder: str | None) -> bool:
    return folder is not None and isinstance(name, (str, Path)) and Path(name).is_relative_to(folder)


def _expected(cause: ManagerFault) -> str:
    """What a call should have done instead, in words."""
    match cause:
        case Hung():
            return "the call to return"
        case Died():
            return "the process to go on"
        case WrongAnswer():
            return "an answer of the kind that the adapter's contract describes"
    return "no error from the manager"


def _fault(
    judge: Judge,
    seen: str,
    expected: str,
    detail: str = "",
    is_about_act: bool = False,
) -> dict[str, Any]:
    """What no comparison found.

    The clause that the test is about takes the blame, unless it rests on the
    one about what was being done, and nothing else had happened.
    """
    story, clause = tuple(judge.story), judge.clauses[0]
    act = judge.act if is_about_act and not judge.events else None
    if act is not None and judge.is_judged(act) and act in foundations(clause):
        clause = act
    return {"clause": clause, "expected": expected, "seen": seen, "story": story, "detail": detail}


def _cause(error: BaseException | None) -> BaseException | None:
    """The one that says most: a group of errors counts as its first failed clause."""
    if isinstance(error, BaseExceptionGroup):
        causes = [_cause(inner) for inner in error.exceptions]
        return next((cause for cause in causes if isinstance(cause, (ClauseFailure, ManagerFault))), causes[0])
    return error


def explain(failure: dict[str, Any]) -> str:
    """A failed clause for somebody who does not know the test."""
    clause = BY_SLUG[failure["clause"]]
    story = "\n".join(f"  {number}. {sentence}" for number, sentence in enumerate(failure["story"], 1))
    lines = [
        f"{clause.slug} ({clause.level}): a checkpoint manager {clause.sentence}",
        f"why: {clause.why}",
        f"expected: {failure['expected']}",
        f"seen: {failure['seen']}",
        f"what happened:\n{story}",
    ]
    if failure["detail"]:
        lines.append(f"detail:\n{failure['detail'].rstrip()}")
    return "\n".join(lines)
