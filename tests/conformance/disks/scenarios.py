"""What managers are put through while they are recorded: a table, from the first save to a disk that fills."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from forge_conformance.disks.recording import Recording
from forge_conformance.judging.judge import CannotJudge
from forge_conformance.runs.group import ALONE, Shape
from forge_conformance.runs.ways import limit
from forge_conformance.watch.recorder import Operation
from forge_conformance.worker.system_calls import CALLS


def _limit(run: Recording, keep_last_n: int) -> dict[str, int]:
    """The limit, where the manager has one; the nearest that it accepts."""
    implementation = run.server.implementation
    return (
        {"keep_last_n": limit(implementation.traits, keep_last_n)} if "retention" in implementation.capabilities else {}
    )


def first_save(run: Recording) -> None:
    with run.life() as life:
        life.save_at(2)
        life.wait()


def new_folder(run: Recording) -> None:
    """The names of all that is made above a folder are as easily lost as what is in it."""
    run.below = "runs/today/checkpoints"
    first_save(run)


def steady(run: Recording) -> None:
    with run.life(**_limit(run, 2)) as life:
        life.save_at(2, 4, 6, 8, 10)
        life.wait()


def keep_one(run: Recording) -> None:
    with run.life(**_limit(run, 1)) as life:
        life.save_at(2, 4, 6)
        life.wait()


def resave(run: Recording) -> None:
    """The second save of step 4 holds another state, or a mixture of the two could not be told."""
    if run.server.implementation.traits.counts_steps:
        rewinds = "explicit" in run.server.implementation.capabilities
        (_resave_after_rewind if rewinds else _resave_by_another_run)(run)
        return
    with run.life(**_limit(run, 3)) as life:
        life.save_at(2, 4)
        life.train_to(5)
        life.save(4)
        life.wait()
        life.train_to(6)
        life.save()
        life.wait()


def _resave_after_rewind(run: Recording) -> None:
    """A manager that counts the steps itself comes to step 4 again from step 2; there the run is given other values."""
    with run.life(**_limit(run, 3)) as life:
        life.save_at(2, 4)
        life.wait()
    with run.life(**_limit(run, 3)) as life:
        life.load(2)
        life.call("scramble")
        for step in (4, 6):
            life.save_at(step)
            life.wait()


def _resave_by_another_run(run: Recording) -> None:
    """The same, where no step can be named to a load: a run begins anew."""
    if run.server.implementation.traits.resumes_at_start:
        raise CannotJudge(
            "The manager counts the steps itself, resumes by itself when it starts (traits counts_steps and "
            "resumes_at_start), and loads no step that is named (capability explicit), so no run saves a step again."
        )
    with run.life(**_limit(run, 3)) as life:
        life.save_at(2, 4)
        life.wait()
    with run.life(seed=1, **_limit(run, 3)) as life:
        life.train_to(4)
        life.save()
        life.wait()
        life.train_to(6)
        life.save()
        life.wait()


def fallback(run: Recording) -> None:
    """A run that died in a save resumes and goes on over what that left."""
    with run.life(**_limit(run, 2)) as life:
        life.save_at(2)
        life.wait()
        before = run.control.done
        life.save_at(4)
        life.wait()
        life.train_to(6)
        life.dies_in_save(after=min(5, (run.control.done - before) // 2))
    with run.life(**_limit(run, 2)) as life:
        life.load()
        life.save_at(6, 8)
        life.wait()


def milestones(run: Recording) -> None:
    with run.life(**_limit(run, 1), window={"start": 0, "stop": 4, "strategy": "power2"}) as life:
        life.save_at(1, 2, 3, 4, 6, 8)
        life.wait()


def rewind(run: Recording) -> None:
    """The run goes back to an older checkpoint and saves its steps again."""
    with run.life(**_limit(run, 3)) as life:
        life.save_at(2, 4, 6)
        life.wait()
    with run.life(**_limit(run, 3)) as life:
        life.load(2)
        life.save_at(4, 6)
        life.wait()


def disk_full(run: Recording) -> None:
    """The disk is full during one save, and has room again for the next."""
    with run.life(**_limit(run, 2)) as life:
        life.save_at(2)
        life.wait()
        life.train_to(4)
        space = _Space(until=run.control.done + 4)
        with life.failing(space.error), life.refusing():
            life.save()
            life.wait()
        if run.is_recorded and not space.ran_out:
            raise CannotJudge(
                "The disk of scenario 'disk-full' fills from the fourth operation of a save on, and after that nothing "
                "in that save needed room in the folder: it was written elsewhere, or in fewer operations."
            )
        life.save_at(6)
        life.wait()


def ranks(run: Recording) -> None:
    with run.life(**_limit(run, 2)) as life:
        life.save_at(2, 4, 6)
        life.wait()


def ranks_resave(run: Recording) -> None:
    """Ranks that save a step again are each in the old one or in the new."""
    with run.life(**_limit(run, 2)) as life:
        life.save_at(2)
        life.train_to(3)
        life.save(2)
        life.wait()


def ephemeral_replaced(run: Recording) -> None:
    with run.life(hooks=_hooks(save_interval=6, ephemeral_save_interval=2)) as life:
        life.pre_train()
        life.batches_to(8)
        life.wait()


def ephemeral_removal(run: Recording) -> None:
    """A run that died in a removal resumes and goes on over what that left."""
    hooks = _hooks(save_interval=100, ephemeral_save_interval=2)
    with run.life(hooks=hooks) as life:
        life.pre_train()
        life.dies_in_removal(of=2, until=6)
    with run.life(hooks=hooks) as life:
        life.load()
        life.pre_train()
        life.batches_to(8)
        life.wait()


def permanent_limit(run: Recording) -> None:
    """What the first process has saved counts in the second one."""
    hooks = _hooks(save_interval=2, max_checkpoints=2)
    with run.life(hooks=hooks) as life:
        life.pre_train()
        life.batches_to(6)
        life.wait()
    with run.life(hooks=hooks) as life:
        life.load()
        life.pre_train()
        life.batches_to(8)
        life.wait()


def reconfigured(run: Recording) -> None:
    """By the new intervals alone step 4 would not be permanent, and step 8 not ephemeral."""
    run.every = 3
    with run.life(hooks=_hooks(save_interval=4, ephemeral_save_interval=2)) as life:
        life.pre_train()
        life.batches_to(10)
        life.wait()
    with run.life(hooks=_hooks(save_interval=12, ephemeral_save_interval=3, remove="all_non_permanent")) as life:
        life.load()
        life.pre_train()
        life.batches_to(15)
        life.wait()


def _hooks(**settings: Any) -> dict[str, Any]:
    return {"pre_train_checkpoint": False, **settings}


@dataclass
class _Space:
    """There is room until an operation, and none from there on."""

    until: int
    ran_out: bool = False

    def error(self, operation: Operation) -> int:
        """What an operation fails with."""
        if operation.number < self.until or not CALLS[operation.name].takes_room:
            return 0
        self.ran_out = True
        return errno.ENOSPC


_RANKS = frozenset({"distributed"})
_STAGES = frozenset({"distributed", "pipeline"})
_HOOKS = frozenset({"ephemeral"})


@dataclass(frozen=True)
class Scenario:
    """A scenario, in words, and the capabilities that it needs."""

    name: str
    run: Callable[[Recording], None]
    says: str
    needs: frozenset[str] = frozenset()
    shape: Shape = ALONE
    """Several ranks, and how they divide the work."""


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("first-save", first_save, "the first save ever, into an empty folder"),
        Scenario("new-folder", new_folder, "the first save ever, into a folder that is made with the two above it"),
        Scenario("steady", steady, "five saves, with a limit of two where the manager has one"),
        Scenario("keep-one", keep_one, "three saves with a limit of one", frozenset({"retention"})),
        Scenario("resave", resave, "a step is saved again with another state, and the run goes on"),
        Scenario("fallback", fallback, "a run dies in a save; the next one resumes and saves that step again"),
        Scenario(
            "milestones", milestones, "saves inside and after a window, with a limit of one", frozenset({"window"})
        ),
        Scenario(
            "rewind", rewind, "a run goes back to an older checkpoint and saves on", frozenset({"explicit", "pointer"})
        ),
        Scenario("disk-full", disk_full, "the disk fills during a save and has room again for the next"),
        Scenario(
            "ephemeral", ephemeral_replaced, "hooks save ephemeral checkpoints, and remove the replaced ones", _HOOKS
        ),
        Scenario("removal", ephemeral_removal, "a run dies in the removal of an ephemeral checkpoint", _HOOKS),
        Scenario(
            "limit",
            permanent_limit,
            "hooks save more permanent checkpoints than the limit, in two processes",
            _HOOKS | {"max-permanent"},
        ),
        Scenario("reconfigured", reconfigured, "hooks have other intervals in the second process", _HOOKS),
        Scenario("ranks", ranks, "two ranks save three times", _RANKS, Shape(2)),
        Scenario("ranks-resave", ranks_resave, "two ranks save a step again with another state", _RANKS, Shape(2)),
        Scenario("stages", ranks, "two pipeline stages save three times", _STAGES, Shape(2, stages=2)),
        Scenario("stages-resave", ranks_resave, "two stages save a step again", _STAGES, Shape(2, stages=2)),
    )
}
"""Every scenario under its name."""
