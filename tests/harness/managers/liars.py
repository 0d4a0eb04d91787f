"""Managers that do one thing wrong each; the rest of them is honest.

The first ones, down to `Overwriting`, are wrong on paper already, so none of their code ever runs.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from honest import Honest

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training


class Saveless(Adapter):
    """Lacks two of its three duties."""

    def wait(self) -> None:
        return None


class Misspelt(Honest):
    """Claims a capability that there is not."""

    claims = Claims("core", ("sync", "asink"))


class Ambitious(Honest):
    """Claims a level that there is not."""

    claims = Claims("heroic", ("sync",))


class Nameless(Honest):
    """Its layout does not say where the step is in a name."""

    layout = Layout(checkpoint=r"[0-9]+\.pt", is_dir=False, required=(), pointer=None, name="{step}.pt")


class Misnamed(Honest):
    """Names its checkpoints otherwise than it recognises them."""

    layout = replace(Honest.layout, name="{step}.pth")


class Wordy(Honest):
    """Claims a text where a tuple of them belongs."""

    claims = Claims("core", "sync")  # type: ignore[arg-type]  # what it is about


class Undemanding(Honest):
    """Its directories are complete whatever is in them."""

    layout = replace(Honest.layout, is_dir=True)


class Pointless(Honest):
    """Claims a pointer and has none."""

    claims = Claims("core", ("sync", "pointer"))


class Overwriting(Honest):
    """Its layout is that of one file which each save overwrites."""

    layout = replace(Honest.layout, checkpoint=r"last\.pt", name="last.pt")


class Elsewhere(Honest):
    """Keeps its checkpoints where its layout does not look: in a folder below the folder."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder /= "checkpoints"
        self.folder.mkdir(exist_ok=True)


class Misshapen(Honest):
    """Its layout takes its files for directories."""

    layout = replace(Honest.layout, is_dir=True, required=("model.pt",))


class Unborn(Honest):
    """Raises when it is made."""

    def __init__(self, settings: Settings, training: Training) -> None:
        raise ConnectionError("the licence server did not answer")


class Sleeper(Honest):
    """Does not come back from being made."""

    def __init__(self, settings: Settings, training: Training) -> None:
        _sleep_for_ever()


class Stuck(Honest):
    """Does not come back from `save`."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        _sleep_for_ever()


class Deaf(Stuck):
    """And cannot be woken by an alarm."""

    def __init__(self, settings: Settings, training: Training) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        super().__init__(settings, training)


class Boaster(Honest):
    """Claims `async` and saves synchronously; claims `peek` and has none; has a schedule and does not claim it."""

    claims = Claims("core", ("sync", "async", "peek"))

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(replace(settings, mode="sync"), training)

    @classmethod
    def probe(cls) -> dict[str, bool]:
        return {"peek": False, "schedule": True}


class Noisy(Honest):
    """Right in all that it saves; it prints without end, leaves processes behind and closes what is not its own."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        print("noise " * 100_000, flush=True)
        os.write(1, b"noise from below Python\n" * 10_000)
        heir = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"], start_new_session=True)
        with open(os.environ["NOISY_HEIRS"], "a") as heirs:
            heirs.write(f"{heir.pid}\n")
        super().save(step, tokens_seen, extra, parts)

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        loaded = super().load(path, exclude, freeze_expected, parts)
        sys.stdout.close()
        os.close(1)
        return loaded


class Forgetful(Honest):
    """Comes back with a step that is no number."""

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        loaded = super().load(path, exclude, freeze_expected, parts)
        return Loaded(f"step_{loaded.step}", loaded.tokens_seen, loaded.extra)  # type: ignore[arg-type]


class Saboteur(Honest):
    """Kills the suite's server, the parent of every worker, when it is to save for the second time."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if list(self.folder.glob("*.pt")):
            os.kill(os.getppid(), signal.SIGKILL)
        super().save(step, tokens_seen, extra, parts)


def _sleep_for_ever() -> None:
    threading.Event().wait()
