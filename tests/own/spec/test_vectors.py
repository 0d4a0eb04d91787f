"""The written vectors are what the specification says, and a manager that is off by one fails some of them.

`Arithmetic` is a manager without files, which answers in the plainest way
there is and can be given one mistake.
"""

import json
import posixpath
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from forge_spec import BY_SLUG, vectors
from forge_spec.questions import ASKED, CORNERS, FOLDER, WHOLE

WRITTEN = Path(__file__).parents[3] / "fixtures" / "vectors"
SCHEMA = json.loads((WRITTEN / "schema.json").read_text())
CASES = [case for chapter in vectors.CHAPTERS for case in vectors.cases(chapter)]


def test_what_is_written_has_not_drifted() -> None:
    assert vectors.drifted(WRITTEN) == [], "renew with: python -m forge_spec.vectors --write fixtures/vectors"


def test_drift_is_reported_with_the_way_to_renew_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert vectors.main(["--write", str(tmp_path)]) == 0
    assert vectors.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "trust.json").write_text("{}")
    assert vectors.main(["--check", str(tmp_path)]) == 1
    assert f"trust.json is out of date; renew them with: python -m forge_spec.vectors --write {tmp_path}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("chapter", vectors.CHAPTERS)
def test_a_chapter_follows_the_schema(chapter: str) -> None:
    jsonschema.validate(json.loads((WRITTEN / f"{chapter}.json").read_text()), SCHEMA)


def test_the_schema_refuses_a_case_that_says_something_else() -> None:
    document = json.loads((WRITTEN / "trust.json").read_text())
    document["cases"][0]["given"]["mode"] = 644
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: f"{corner.question}/{corner.label}")
def test_the_predicates_give_the_answer_that_was_written_by_hand(corner: Any) -> None:
    assert ASKED[corner.question].answer(corner.given) == corner.expected, corner.why


def test_nothing_is_written_while_they_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("forge_spec.schedule.should_save", lambda step, interval, window: True)
    assert vectors.main(["--write", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
    assert "schedule/saves/step-0-is-a-multiple: by hand {'saves': [0, 5, 10]" in capsys.readouterr().err


def test_every_question_has_corners_and_every_id_is_one() -> None:
    assert {corner.question for corner in CORNERS} == set(ASKED)
    ids = [case["id"] for case in CASES]
    assert len(ids) == len(set(ids))


def test_every_case_names_clauses() -> None:
    named = {slug for case in CASES for slug in case["clauses"]}
    assert named <= set(BY_SLUG)
    assert all(case["clauses"] for case in CASES)


def test_the_example_in_the_readme_is_one_of_them() -> None:
    readme = (WRITTEN.parent / "README.md").read_text()
    (example,) = re.findall(r"^    (\{.*?\})\n\n", readme, re.DOTALL | re.MULTILINE)
    assert json.loads(example) in CASES


# -- a manager that is off by one ------------------------------------------------------


@dataclass(frozen=True)
class Arithmetic:
    """What a manager decides, computed without the specification; `mistake` is the one thing that it gets wrong."""

    mistake: str = ""

    def __call__(self, question: str, given: Any) -> Any:
        """The answer, in the form of the vectors."""
        return getattr(self, question.replace("/", "_").replace("-", "_"))(given)

    def _makes(self, mistake: str) -> bool:
        return self.mistake == mistake

    def schedule_saves(self, given: Any) -> Any:
        window, every = given["window"], given["interval"]
        steps = range(given["steps"][0], given["steps"][1] + 1)

        def inside(step: int) -> bool:
            first = window["start"] + self._makes("the start is left out")
            return first <= step <= window["stop"] - self._makes("the stop is left out")

        def fires(step: int) -> bool:
            if window["strategy"] != "power2":
                return step in window["strategy"]
            away = step - (0 if self._makes("powers of the step itself") else window["start"])
            if away == 0:
                return not self._makes("power2 is silent at its start")
            return away > 0 and bin(away).count("1") == 1

        def milestone(step: int) -> bool:
            return window is not None and (inside(step) or self._makes("milestones everywhere")) and fires(step)

        def multiple(step: int) -> bool:
            if self._makes("no save at step 0") and step == 0:
                return False
            return (step + self._makes("one step early")) % every == 0

        def saves(step: int) -> bool:
            if window is None or not inside(step):
                return multiple(step)
            return milestone(step) or (self._makes("the interval speaks inside") and multiple(step))

        return {"saves": [s for s in steps if saves(s)], "milestones": [s for s in steps if milestone(s)]}

    def retention_deletion(self, given: Any) -> Any:
        """At level strict only; level core is checked by its bounds."""
        folder, limit = given["folder"], given["keep_last_n"]
        steps = {}
        for name, kind in folder.items():
            digits = name.removeprefix("step_")
            if self._makes("a backup is a checkpoint") and kind == "foreign":
                digits, kind = digits.partition("_")[0], "complete"
            if digits.isdecimal() and kind in ("complete", "torn", "unreadable"):
                steps[name] = (int(digits), kind)
        complete = [name for name, (_, kind) in steps.items() if kind != "torn"]
        if given["committed"] is None or (limit <= 0 and not self._makes("0 keeps none")):
            return complete
        above = [name for name in complete if steps[name][0] > given["committed"]]
        is_told = self._makes("the unreadable is ordinary")
        spared = {name for name in complete if steps[name][1] == "unreadable" and not is_told}
        spared |= {name for name in complete if steps[name][0] in given["milestones"]}
        counted = [name for name in complete if name not in spared and name not in above]
        if self._makes("milestones count"):
            counted = [name for name in complete if name not in above]
        if self._makes("debris counts"):
            counted += [name for name in steps if name not in complete and steps[name][0] not in given["in_flight"]]
        if self._makes("steps after a rewind count"):
            counted += above
        key: Callable[[str], Any] = (lambda name: name) if self._makes("by name") else lambda name: steps[name][0]
        limit += self._makes("one too many") - self._makes("one too few")
        newest = sorted(counted, key=key, reverse=True)[: max(limit, 0)]
        kept = {*newest, *spared, *above, given["latest"]}
        if self._makes("the pointer is forgotten"):
            kept.discard(given["latest"])
            kept |= set(newest)
        return [name for name in complete if name in kept]

    def resume_landing(self, given: Any) -> Any:
        """The entry that is loaded, `fresh` or `refused`."""
        folder, markers = given["folder"], [".metadata"]
        if given["stages"] is not None:
            count = 1 if self._makes("one stage speaks for all") else given["stages"]
            markers = [f"pp{stage}/.metadata" for stage in range(count)]
        required = markers if self._makes("the marker is enough") else [*markers, "train_state.pt", "metadata.json"]
        places = {f"{FOLDER}/{name}": files for name, files in folder.items() if isinstance(files, list)}
        steps = {}
        for place in places:
            digits = posixpath.basename(place).removeprefix("step_")
            is_ours = digits.isdecimal() and digits == str(int(digits))
            if is_ours or (self._makes("leading zeros pass") and digits.isdecimal()):
                steps[place] = int(digits)
        complete = [place for place in steps if set(required) <= set(places[place])]
        order = [given["path"], given["load_path"]]
        for named in order[::-1] if self._makes("the configuration comes first") else order:
            if named is not None:
                return self._named(named, places, given["stages"], complete, steps)
        target = posixpath.normpath(posixpath.join(FOLDER, given["latest"])) if given["latest"] else None
        reads_shards = not {"model", "optimizer"} <= set(given["exclude"])
        if self._makes("either part excluded is enough"):
            reads_shards = not {"model", "optimizer"} & set(given["exclude"])
        if target in steps and not self._makes("the pointer is not asked"):
            if target in complete or not reads_shards or self._makes("the pointer is taken at its word"):
                return posixpath.basename(target)
        elif target is not None and self._makes("a broken pointer ends it"):
            return "refused"
        if self._makes("torn ones count"):
            complete = list(steps)
        key: Callable[[str], Any] = (lambda place: place) if self._makes("by name") else lambda place: steps[place]
        oldest = self._makes("the oldest is taken")
        chosen = sorted(complete, key=key)[:1] if oldest else sorted(complete, key=key)[-1:]
        return posixpath.basename(chosen[0]) if chosen else "fresh"

    def _named(self, named: str, places: Any, stages: Any, complete: list[str], steps: dict[str, int]) -> str:
        has = {file for file in places.get(named, []) if file.endswith(".metadata")}
        needs = {".metadata"} if stages is None else {f"pp{stage}/.metadata" for stage in range(stages)}
        if has == needs or (has and self._makes("any stages will do")):
            return posixpath.basename(named)
        if self._makes("a name falls back") and complete:
            return posixpath.basename(max(complete, key=lambda place: steps[place]))
        return "refused"

    def freeze_compare(self, given: Any) -> Any:
        """Whether the load is refused."""
        if not isinstance(given["saved"], list) or given["expected"] is None:
            return False
        saved, expected = dict(map(tuple, given["saved"])), dict(map(tuple, given["expected"]))
        modules = saved.keys() & expected.keys()
        if self._makes("all modules are compared"):
            modules = saved.keys() | expected.keys()
        differing = [module for module in modules if saved.get(module) != expected.get(module)]
        if self._makes("one that agrees is enough"):
            differing = differing if len(differing) == len(modules) else []
        return bool(differing) and not given["ignore"]

    def freeze_effective(self, given: Any) -> Any:
        """Module -> frozen, or `refused`."""
        in_force = dict(map(tuple, given["base"]))
        stages = [s for s in given["schedule"] if s["start_step"] + self._makes("a stage begins late") <= given["step"]]
        for stage in stages if self._makes("as written") else sorted(stages, key=lambda stage: stage["start_step"]):
            if self._makes("a stage replaces the list"):
                in_force = {}
            in_force.update(map(tuple, stage["entries"]))
        valid = given["valid_modules"]
        return "refused" if valid is not None and in_force.keys() - set(valid) else in_force

    def resume_excluded(self, given: Any) -> Any:
        left: set[str] = set()
        wrong = []
        for word in given["exclude"]:
            if word in ("model", "optimizer", "scheduler", "dataloader", "rng"):
                left |= set(given["names"]) if word == "model" else set()
                continue
            words = word.strip(".").split(".")
            found = {name for name in given["names"] if name.split(".")[: len(words)] == words}
            if self._makes("by the letter"):
                found = {name for name in given["names"] if name.startswith(word)}
            left |= found
            wrong += [] if found or self._makes("a typing error is passed over") else [word]
        return {"refused_for": sorted(wrong), "untouched": [] if wrong else sorted(left)}

    def trust_pickle(self, given: Any) -> Any:
        if given["owner"] != given["reader"] and not (self._makes("root is trusted") and given["owner"] == 0):
            return {"objections": ["refuse"]}
        others = 0o002 if self._makes("the group is trusted") else 0o022
        return {"objections": ["warn"] if int(given["mode"], 8) & others else []}


def short(question: str, expected: Any, given: Any) -> Any:
    """An expected answer in the form that `Arithmetic` gives."""
    match question:
        case "retention/deletion":
            stays = expected["strict"]["must_stay"]
            return [
                name for name, kind in given["folder"].items() if kind in ("complete", "unreadable") and name in stays
            ]
        case "resume/landing":
            return expected["checkpoint"] or expected["outcome"]
        case "freeze/compare":
            return expected["outcome"] == "refused"
        case "freeze/effective":
            return "refused" if expected["in_force"] is None else dict(map(tuple, expected["in_force"]))
    return expected


def failed_by(manager: Arithmetic, question: str) -> list[str]:
    """The vectors of a question that a manager answers otherwise."""
    asked = [case for case in CASES if case["question"] == question]
    return [
        case["id"]
        for case in asked
        if manager(question, case["given"]) != short(question, case["expected"], case["given"])
    ]


MISTAKES = {
    "schedule/saves": (
        "the start is left out",
        "the stop is left out",
        "powers of the step itself",
        "power2 is silent at its start",
        "milestones everywhere",
        "no save at step 0",
        "one step early",
        "the interval speaks inside",
    ),
    "retention/deletion": (
        "a backup is a checkpoint",
        "0 keeps none",
        "milestones count",
        "debris counts",
        "the unreadable is ordinary",
        "steps after a rewind count",
        "by name",
        "one too many",
        "one too few",
        "the pointer is forgotten",
    ),
    "resume/landing": (
        "one stage speaks for all",
        "the marker is enough",
        "leading zeros pass",
        "the configuration comes first",
        "either part excluded is enough",
        "the pointer is not asked",
        "the pointer is taken at its word",
        "a broken pointer ends it",
        "torn ones count",
        "by name",
        "the oldest is taken",
        "any stages will do",
        "a name falls back",
    ),
    "resume/excluded": ("by the letter", "a typing error is passed over"),
    "freeze/compare": ("all modules are compared", "one that agrees is enough"),
    "freeze/effective": ("a stage begins late", "as written", "a stage replaces the list"),
    "trust/pickle": ("root is trusted", "the group is trusted"),
}


@pytest.mark.parametrize("question", MISTAKES)
def test_a_manager_without_a_mistake_answers_every_vector(question: str) -> None:
    assert failed_by(Arithmetic(), question) == []


@pytest.mark.parametrize(
    ("question", "mistake"), [(question, mistake) for question, made in MISTAKES.items() for mistake in made]
)
def test_each_mistake_fails_a_vector_that_was_written_by_hand(question: str, mistake: str) -> None:
    by_hand = {f"{corner.question}/{corner.label}" for corner in CORNERS}
    assert by_hand.intersection(failed_by(Arithmetic(mistake), question))


def test_the_resume_points_follow_from_the_events_without_the_specification() -> None:
    """The resume points of `commit/order`, followed by hand through the events."""
    for case in (case for case in CASES if case["question"] == "commit/order"):
        folder = {name: set(files) for name, files in case["given"]["folder"].items()}
        latest, seen = case["given"]["latest"], []
        for verb, *about in [["returns", ""], *case["given"]["events"]]:
            name, _, file = about[0].partition("/")
            if verb == "write":
                folder.setdefault(name, set()).add(file)
            elif verb == "remove":
                folder[name].remove(file)
            elif verb == "rename":
                folder[about[1]] = folder.pop(about[0])
            elif verb == "point":
                latest = about[0]
            whole = [name for name, files in folder.items() if name[0] == "s" and set(WHOLE[1:]) <= files]
            numbers = [int(name.removeprefix("step_")) for name in ([latest] if latest in whole else whole)]
            seen.append(max(numbers, default=None))
        told = case["expected"]["resume_points"]
        assert seen[: len(told)] == told, case["id"]
        assert (len(seen) == len(told)) == (case["expected"]["breaks"] is None), case["id"]
