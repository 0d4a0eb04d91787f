"""Processes in which hooks of the training loop save and remove, as a scenario drives them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from forge_conformance.runs.group import Shape
from forge_conformance.runs.life import Life, World
from forge_conformance.runs.scenario import Scenario


class HookedLife(Life):
    """A process whose manager is called at hooks."""

    def pre_train(self) -> None:
        """The hook before the first batch."""
        self.scenario.make_way(self)
        self.tell("begins to train")
        self.note("ephemeral.permanent")
        self.worker.call("pre_train")

    def batches_to(self, step: int) -> list[str]:
        """Train to this step, with the hook after each batch; the losses.  What is raised is raised at the last."""
        self.begin_batches_to(step)
        losses: list[str] = self.worker.reply()
        return losses

    def begin_batches_to(self, step: int) -> None:
        """Start that; `self.worker.reply()` ends it."""
        self.scenario.make_way(self)
        self.tell(f"trains from step {self.step} to {step}, with the hook after each batch")
        self.note("ephemeral.permanent")
        steps, self.step = step - self.step, step
        self.worker.begin("batches", steps=steps)

    def post_train(self) -> None:
        """The hook after the last batch."""
        self.tell("has trained")
        self.note("ephemeral.last")
        self.worker.call("post_train")

    def block_ephemeral(self, is_blocked: bool) -> None:
        """Let the run block ephemeral checkpoints, or not."""
        self.tell(f"{'blocks' if is_blocked else 'no longer blocks'} ephemeral checkpoints")
        self.scenario.judge.happens("ephemeral checkpoints are blocked")
        self.worker.call("block_ephemeral", is_blocked=is_blocked)

    def is_pending(self) -> bool:
        """`checkpoint_pending`."""
        answer: bool = self.worker.call("checkpoint_pending")
        return answer

    def settled_batches_to(self, step: int) -> None:
        """Train to this step, and let what it began in the background come to its end."""
        self.batches_to(step)
        self.settle()

    def batch_held(self) -> bool:
        """One batch whose save has its flush held at a file operation; whether it is, now that the hook has returned.

        See `save_held` for what is let go.
        """
        self.close_gate()
        self.begin_batches_to(self.step + 1)
        self._lets_go_until_replied()
        is_held = self._is_held_while_training_may_go_on()
        held = ", ".join(str(operation) for operation in self.gate.held()) or "nothing"
        self.tell(f"has returned from the hook; held at the gate: {held}")
        return is_held


def hooked(
    run: Scenario, *, gated: bool = False, reads: bool = False, seed: int = 0, mode: str | None = None, **hooks: Any
) -> HookedLife:
    """A fresh process that has made its run and its callback, and loaded nothing; it saves nothing before training."""
    look_at_hooks(run)
    settings: dict[str, Any] = {"mode": mode or run.mode, "hooks": {"pre_train_checkpoint": False, **hooks}}
    life = run.start(gated=gated, reads=reads, seed=seed, kind=HookedLife, **settings)
    assert isinstance(life, HookedLife)
    return life


def begun(run: Scenario, **how: Any) -> HookedLife:
    """The same, and it has begun to train."""
    life = hooked(run, **how)
    life.pre_train()
    return life


def resumed(run: Scenario, path: Any = None, **how: Any) -> HookedLife:
    """A fresh process that has resumed, from the path if one is given, and begun to train."""
    life = hooked(run, **{"seed": 999, **how})
    life.load(path)
    life.pre_train()
    return life


def hooked_world(run: Scenario, shape: Shape, **how: Any) -> World:
    """The ranks of a fresh run; `hooks` is what all of them, or by a callable each, are configured with."""
    look_at_hooks(run)
    return run.world(shape, **how)


def look_at_hooks(run: Scenario) -> None:
    """From here on the scenario's folder is one that hooks save into."""
    run.folder = replace(run.folder, layout=run.implementation.hooked_layout)


def kind_of(run: Scenario, step: int) -> str | None:
    """What is recorded of a checkpoint by the layout of the chapter `ephemeral`; None where it has another layout."""
    if not run.has("step-layout"):
        return None
    content: Mapping[str, Any] = json.loads((run.folder.of(step) / ".metadata.json").read_text())
    return {True: "ephemeral", False: "permanent"}.get(content.get("ephemeral"), "unknown")  # type: ignore[arg-type]
