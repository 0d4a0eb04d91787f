"""A base for adapters of managers that live only inside the training loop of a framework.

The suite calls `train`, `save` and `load` one at a time; a framework calls its
hooks from a loop that it owns.  `LoopAdapter` brings the two together with one
greenlet, which has a stack of its own on the same thread: the loop runs on it
and pauses between two batches, and each call of the suite lets it go on to the
next pause.  docs/framework-adapters.md has a whole example.

Invariants: the loop is the framework's, as released; one loop lasts as long
as its process, unless an error ends it or a load begins another; and everything runs on
the thread that the suite calls, so what another thread does is background.

It needs the package greenlet in the Python that the manager lives in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from greenlet import getcurrent, greenlet

from forge_conformance.adapter import Adapter, Loaded, Settings, Training, Unsupported

_GO_ON, _SAVE = "go on", "save"


class LoopAdapter(Adapter):
    """Subclasses define `run_loop`, `count`, `hand_over` and `loaded`, and call `pause` and `took_step` from hooks."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self._loop: greenlet | None = None
        self._losses: list[str] = []

    # -- what a subclass defines ------------------------------------------------

    def run_loop(self, path: str | None, resumes: bool) -> None:
        """Run the framework's loop, without an end: from a checkpoint that is named, or as `resumes` says.

        Without `resumes` the run begins anew.  A hook calls `pause` before the
        first batch, and again after each batch.
        """
        raise NotImplementedError

    def count(self) -> int:
        """The framework's own count of steps, under which it saves."""
        raise NotImplementedError

    def hand_over(self, tokens_seen: int, extra: Mapping[str, Any]) -> None:
        """Give the framework what the next checkpoint has to hold besides its own state."""
        raise NotImplementedError

    def loaded(self) -> Loaded:
        """What the loop came back with, asked at its first pause."""
        raise NotImplementedError

    # -- what the hooks of a subclass call --------------------------------------

    def pause(self, save: Callable[[], object]) -> None:
        """Let the suite act; returns when the loop has to go on with the next batch.

        `save` makes the framework save now.  It is called here, inside the
        loop; what it raises goes through the loop as any error of a hook.
        """
        suite = getcurrent().parent
        assert suite is not None, "pause() is called from the framework's loop"
        while suite.switch() == _SAVE:
            save()

    def took_step(self, losses: Sequence[str]) -> None:
        """The loop has trained with this batch; `losses` is what `self.training.train(1)` returned."""
        self._losses += losses

    # -- what the suite calls ---------------------------------------------------

    def train(self, steps: int) -> list[str]:
        self._losses.clear()
        for _ in range(steps):
            self._say(_GO_ON)
        return list(self._losses)

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        """Whatever `parts` says, the framework saves scheduler and loader: it was given them as the run began."""
        self._begin_if_outside()
        if step != self.count():
            raise Unsupported(
                f"the framework saves under its own count of steps, which is {self.count()}, not {step}; the trait "
                "counts_steps says that it counts by itself, and dies_of_failed_save that a failed save ends its loop"
            )
        self.hand_over(tokens_seen, dict(extra or {}))
        self._say(_SAVE)

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        if exclude or freeze_expected is not None:
            raise Unsupported("the framework loads everything that is in a checkpoint")
        self.leave()
        self._begin(path or self.settings.load_path, resumes=True)
        return self.loaded()

    def leave(self) -> None:
        """End the loop as an exception out of a hook does; the next call begins another on what is in memory."""
        if self._loop is not None:
            self._loop.throw()

    def finish(self) -> None:
        """What the end of a script is to the loop (`Traits.has_end`)."""
        self.leave()

    def _begin(self, path: str | None, resumes: bool) -> None:
        self._loop = greenlet(self.run_loop)
        self._loop.switch(path, resumes)

    def _begin_if_outside(self) -> None:
        if self._loop is None or self._loop.dead:
            self._begin(None, resumes=False)

    def _say(self, word: str) -> None:
        self._begin_if_outside()
        assert self._loop is not None
        self._loop.switch(word)
        if self._loop.dead:
            raise RuntimeError("the framework's loop came to its end by itself; run_loop has to run without an end")
