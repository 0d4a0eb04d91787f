"""Managers that are careful until something really happens to them: each does one thing wrong when it dies or fails."""

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from careful import Careful, Elsewhere, InPlace, Mixes, NeverAgain

from forge_conformance.adapter import Claims, Settings, Training


class Background(Careful):
    """Careful, with a flush in the background that a normal exit waits for."""

    is_daemon = False

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        self.wait()
        self.thread = threading.Thread(target=self.flush_now, args=(step, self.files(step)), daemon=self.is_daemon)
        self.thread.start()

    def flush_now(self, step: int, files: Mapping[str, bytes]) -> None:
        try:
            self.commit(step, files)
        except OSError as error:
            self.error = error

    def wait(self) -> None:
        if self.thread is not None:
            self.thread.join()
        error, self.error = self.error, None
        if error is not None:
            raise error


class Chosen(Careful):
    """One of the others, named in a file beside the folder, or by a variable: so that one server tries them all."""

    claims = Claims("durable", ("sync", "async", "pointer", "retention", "explicit"))

    def __new__(cls, settings: Settings, training: Training) -> Any:
        named = Path(settings.folder).with_name("chosen")
        name = named.read_text() if named.exists() else os.environ.get("CHOSEN", "Careful")
        return globals()[name](settings, training)


# -- deaths -----------------------------------------------------------------------


class LosesAtTerm(Careful):
    """Tidies up when it is told to end, and takes the pointer and the newest checkpoint for debris."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        signal.signal(signal.SIGTERM, self.end)

    def end(self, *_: object) -> None:
        self.lose()
        os._exit(1)

    def lose(self) -> None:
        (self.folder / "latest").unlink(missing_ok=True)
        for step in self.steps()[-1:]:
            shutil.rmtree(self.folder / f"step_{max(self.steps(), default=step)}")


class LosesAtExit(LosesAtTerm):
    """The same, when the interpreter ends."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        atexit.register(self.lose)


class NeverEnds(Background):
    """Waits at its end for what never comes."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        atexit.register(threading.Event().wait)


class PointsFirst(Background):
    """Lets the pointer go first, and its flush ends with the interpreter; a resume trusts the pointer."""

    is_daemon = True

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        self.point_at(step)
        super().commit(step, files)

    def find(self) -> Path | None:
        pointed = self.folder / "latest"
        return self.folder / os.readlink(pointed) if pointed.is_symlink() else None


class SweepsAtLoad(Careful):
    """A resume deletes what it takes for the debris of a dead save; the save may be somebody's who is alive."""

    def find(self) -> Path | None:
        shutil.rmtree(self.staged(), ignore_errors=True)
        return super().find()


class Piles(Careful):
    """Puts each checkpoint together under a new name, and leaves it there when it dies."""

    def staged(self) -> Path:
        names = (self.folder / f".staged-{number}" for number in itertools.count())
        return next(name for name in names if not name.exists())


class PilesAndSays(Piles):
    """The same, and says at each resume what stands in the way."""

    def find(self) -> Path | None:
        for left in sorted(self.folder.glob(".staged-*")):
            warnings.warn(f"{left.name} was left by a run that died; remove it by hand", stacklevel=2)
        return super().find()


# -- failing calls ------------------------------------------------------------------


class Swallows(Careful):
    """A save that fails returns as if it had not."""

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        with contextlib.suppress(OSError):
            super().commit(step, files)


class SwallowsInBackground(Background):
    """The same, in the background."""

    def wait(self) -> None:
        self.error = None
        super().wait()
        self.error = None


class ForEver(Careful):
    """Once a save has failed, every later one does."""

    error: OSError | None = None

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        if self.error is not None:
            raise self.error
        try:
            super().commit(step, files)
        except OSError as error:
            self.error = error
            raise


class Twice(ForEver):
    """Raises it in `save`, and once more in `wait`."""

    def wait(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class MakesRoom(Careful):
    """When a save fails, it deletes what it had saved before, to have room the next time."""

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        try:
            super().commit(step, files)
        except OSError:
            for old in self.steps():
                shutil.rmtree(self.folder / f"step_{old}", ignore_errors=True)
            raise


class GivesUp(Careful):
    """Ends the process when a save fails."""

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        try:
            super().commit(step, files)
        except OSError:
            os._exit(1)


# -- bad input ----------------------------------------------------------------------


class HangsInLoad(Careful):
    """Never comes back."""

    def find(self) -> Path | None:
        threading.Event().wait()
        return None


class WritesBeside(Careful):
    """Saves where it should, and keeps a log beside its folder."""

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        super().commit(step, files)
        with open(f"{self.folder}.log", "a") as log:
            print(step, file=log)


class Huge(Careful):
    """Its checkpoints are larger than small disks."""

    def files(self, step: int) -> dict[str, bytes]:
        return {**super().files(step), "ballast": bytes(24 << 20)}


__all__ = ["Elsewhere", "InPlace", "Mixes", "NeverAgain"]
