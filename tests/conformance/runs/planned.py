"""What a run that hooks of the training loop drive saves and removes, by its settings and by what stood there before.

The suite counts for itself: what each save is comes from `forge_spec.ephemeral`,
and what a checkpoint of an earlier process was recorded as, from the ledger.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from forge_conformance.runs.landing import GoingOn
from forge_spec.ephemeral import EPHEMERAL, PERMANENT, Plan, collected, is_permanent_step, may_stand

_NAMES = ("save_interval", "ephemeral_save_interval", "max_checkpoints", "remove")


def plan_of(settings: Mapping[str, Any]) -> Plan | None:
    """What hooks decide by in a process with these settings; None where no hooks drive it."""
    hooks = settings.get("hooks")
    return None if hooks is None else Plan(**{name: hooks[name] for name in _NAMES if name in hooks})


def stands(before: Mapping[int, str], own_step: int, made: Mapping[int, str], plan: Plan) -> frozenset[int]:
    """The steps that a run leaves which began at `own_step`, over what stood there by kind, and made these saves."""
    old = collected(before, own_step, plan)
    counted = {step: _counted(step, kind, step in old, plan) for step, kind in before.items() if step <= own_step}
    rest = {step for step in before if step > own_step and step not in made}
    return may_stand({**counted, **made}, sorted(made), plan.max_checkpoints) | rest


def _counted(step: int, recorded: str, is_collected: bool, plan: Plan) -> str:
    if is_collected:
        return EPHEMERAL
    return PERMANENT if step == 0 or is_permanent_step(step, plan) or recorded == PERMANENT else "kept"


def deviation(expected: Collection[int], complete: Collection[int], kinds: Mapping[int, str], plan: Plan) -> GoingOn:
    """What is wrong with the complete steps that a run has left; `kinds` are what each was saved as."""
    gone, left = sorted(set(expected) - set(complete)), sorted(set(complete) - set(expected))
    if gone:
        clause = "ephemeral.keeps" if plan.max_checkpoints is None else "ephemeral.limit"
        is_of_old = any(kinds[step] == PERMANENT and not is_permanent_step(step, plan) for step in gone)
        clause = "ephemeral.class-recorded" if is_of_old else clause
        return GoingOn(f"after going on, {_steps(gone)} is gone, and was to stay", "removed", clause, tuple(expected))
    if left:
        is_permanent = any(kinds[step] == PERMANENT for step in left)
        clause = "ephemeral.limit-restart" if is_permanent else "ephemeral.nothing-left"
        return GoingOn(f"after going on, {_steps(left)} still stands", "left", clause, tuple(expected))
    return GoingOn()


def _steps(steps: Sequence[int]) -> str:
    return f"step {', '.join(map(str, steps))}"
