"""What a test can't ask of a manager, because the manager works in another way: its traits.

Each function raises `Unreached`, with the trait as the reason, where the
manager that is judged can't be brought into the situation of the test.  Nothing
here ever fails a clause.
"""

import os
from typing import Any

from forge_conformance.adapter import Traits
from forge_conformance.judging.judge import Unreached
from forge_conformance.runs.folder import Folder


def require_settings(traits: Traits, settings: dict[str, Any], folder: Folder) -> None:
    """The manager accepts these settings over this folder, and uses all of them."""
    limit = settings.get("keep_last_n") or 0
    if 0 < limit < traits.min_keep_last_n:
        raise Unreached(
            f"the manager keeps at least {traits.min_keep_last_n} checkpoints (trait min_keep_last_n), and this test "
            f"needs a limit of {limit}"
        )
    if settings.get("load_path") is not None and traits.load_path_is_fallback and folder.complete():
        raise Unreached(
            "the manager uses load_path only in a folder without a checkpoint (trait load_path_is_fallback), and this "
            "test needs it beside checkpoints"
        )
    if traits.names_folder not in ("", os.path.basename(settings.get("folder", folder.path))):
        raise Unreached(
            f"the manager names its folder {traits.names_folder!r} (trait names_folder), and this test needs another "
            "name"
        )


def require_keeps_all(traits: Traits, limit: int) -> None:
    """The manager accepts a limit of 0 or less."""
    if traits.keep_all:
        raise Unreached(
            f"the manager refuses a limit of {limit} (trait keep_all): all are kept with a limit of {traits.keep_all}"
        )


def limit(traits: Traits, wanted: int) -> int:
    """Return the nearest limit that the manager accepts; 0 and less keep all."""
    return max(wanted, traits.min_keep_last_n) if wanted > 0 else wanted


def require_step(traits: Traits, step: int | None, own: int) -> None:
    """The manager can save under this step in a run that is at step `own`."""
    if traits.counts_steps and step not in (None, own):
        raise Unreached(
            f"the manager counts the steps itself (trait counts_steps), so it can't save under step {step} in a run "
            f"that is at step {own}"
        )


def require_trained(traits: Traits, has_trained: bool) -> None:
    """The manager can save before the first step since the run began or resumed, or that step is done."""
    if traits.saves_after_step and not has_trained:
        raise Unreached(
            "the manager saves only after a step of training (trait saves_after_step), and this test needs a save "
            "before the first one since the run began or resumed"
        )


class Beginning:
    """Whether a process has to resume before it can do anything else, and what its own resume came to."""

    def __init__(self, traits: Traits, folder: Folder) -> None:
        self._must_load = traits.resumes_at_start and bool(folder.complete())
        self.refusal: Exception | None = None
        """What the manager raised when it resumed by itself; the caller's first load gets it."""

    def require(self) -> None:
        """The process has loaded, or its manager leaves it to the script when to do so."""
        if self._must_load:
            raise Unreached(
                "the manager resumes by itself when it starts (trait resumes_at_start), and this test needs a run that "
                "begins anew beside checkpoints"
            )

    def loads(self) -> None:
        """A load begins; raises what the manager's own resume raised."""
        if self.refusal is not None:
            raise self.refusal
        self._must_load = False


def require_alive(traits: Traits, has_failed: bool) -> None:
    """The manager can still be used in a process in which a save has or has not failed."""
    if traits.dies_of_failed_save and has_failed:
        raise Unreached(
            "the manager can't be used any more after a save that failed (trait dies_of_failed_save), and this test "
            "goes on in the same process"
        )
