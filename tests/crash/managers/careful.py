"""A manager that is right in everything that a death can show, durable too, and mutants of it that lack one thing each.

Data, then marker, then pointer: a checkpoint is a directory with the state in
one file and a marker beside it, put together under a hidden name; `latest` is a
symbolic link.  Every step is synced before the next.
"""

import mmap
import os
import pickle
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from forge_conformance.adapter import Adapter, Claims, Layout, Loaded, Settings, Training, Unsupported

PARTS = ("model", "optimizer", "scheduler")


class Careful(Adapter):
    """Lacks nothing."""

    claims = Claims("durable", ("sync", "pointer", "retention", "explicit"))
    layout = Layout(required=("marker",))
    lacks = ""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(settings.folder)
        missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        for place in reversed(missing):
            place.mkdir(exist_ok=True)
            self.sync(place.parent, "the folder above" if place == self.folder else "the folders further above")

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        self.commit(step, self.files(step))

    def commit(self, step: int, files: Mapping[str, bytes]) -> None:
        staged, target = self.staged(), self.folder / f"step_{step}"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir()
        for name, content in files.items():
            self.write(staged / name, content, "the state")
        self.write(staged / "marker", b"whole", "the marker")
        self.sync(staged, "the staged directory")
        if target.exists():
            self.replace(staged, target)
        os.rename(staged, target)
        self.sync(self.folder, "the folder after the rename")
        self.point_at(step)
        self.prune(step)

    def staged(self) -> Path:
        """Where a checkpoint is put together."""
        return self.folder / ".staged"

    def files(self, step: int) -> dict[str, bytes]:
        return {"state": pickle.dumps([step, [getattr(self.training, part).state_dict() for part in PARTS]])}

    def read(self, source: Path) -> tuple[int, list[Any]]:
        step, states = pickle.loads((source / "state").read_bytes())
        return step, states

    def replace(self, staged: Path, target: Path) -> None:
        """The old one stays whole, under a name that a resume knows, until the new one stands."""
        old = self.folder / f"old_{target.name}"
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        self.sync(self.folder, "the folder after the old one moved")

    def write(self, path: Path, content: bytes, what: str) -> None:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            if self.lacks != what:
                os.fsync(file.fileno())

    def sync(self, path: Path, what: str) -> None:
        if self.lacks != what:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def point_at(self, step: int) -> None:
        fresh = self.folder / ".latest"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(f"step_{step}")
        os.rename(fresh, self.folder / "latest")
        self.sync(self.folder, "the folder after the pointer")

    def prune(self, step: int) -> None:
        for name in os.listdir(self.folder):
            if name.startswith("old_"):
                shutil.rmtree(self.folder / name)
        due = sorted(found for found in self.steps() if found <= step)
        for old in due[: -self.settings.keep_last_n or len(due)] if self.settings.keep_last_n else []:
            (self.folder / f"step_{old}" / "marker").unlink(missing_ok=True)  # a run may have died right here
            self.sync(self.folder / f"step_{old}", "the directory that is deleted")
            shutil.rmtree(self.folder / f"step_{old}")

    def steps(self) -> list[int]:
        names = [name.removeprefix("step_") for name in os.listdir(self.folder)]
        return [int(name) for name in names if name.isdigit()]

    def wait(self) -> None:
        pass

    def load(
        self,
        path: str | None,
        exclude: Sequence[str],
        freeze_expected: Sequence[Mapping[str, Any]] | None,
        parts: Sequence[str],
    ) -> Loaded:
        source = Path(path) if path is not None else self.find()
        if source is None:
            return Loaded()
        step, states = self.read(source)
        for part, state in zip(PARTS, states, strict=True):
            getattr(self.training, part).load_state_dict(state)
        torch.manual_seed(step)
        return Loaded(step)

    def find(self) -> Path | None:
        """What the pointer names; else the newest that is whole, one that was moved aside included."""
        pointed = self.folder / "latest"
        if self.is_whole(pointed):
            return self.folder / os.readlink(pointed)
        whole = [(step, self.folder / f"{kind}step_{step}") for step in self.all_steps() for kind in ("", "old_")]
        return max(((step, found) for step, found in whole if self.is_whole(found)), default=(0, None))[1]

    def all_steps(self) -> set[int]:
        names = (name.removeprefix("old_").removeprefix("step_") for name in os.listdir(self.folder))
        return {int(name) for name in names if name.isdigit()}

    def is_whole(self, path: Path) -> bool:
        return (path / "marker").is_file() and (path / "marker").stat().st_size > 0


class NoSyncFurtherAbove(Careful):
    lacks = "the folders further above"


class NoSyncOfState(Careful):
    lacks = "the state"


class NoSyncOfStaged(Careful):
    lacks = "the staged directory"


class NoSyncOfRename(Careful):
    lacks = "the folder after the rename"


class NoSyncOfPointer(Careful):
    lacks = "the folder after the pointer"


class DeletesFirst(Careful):
    """A step that is saved again is deleted before its new self stands."""

    def replace(self, staged: Path, target: Path) -> None:
        shutil.rmtree(target)


class InPlace(Careful):
    """Rewrites the state of a step that is saved again under its old marker."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        target = self.folder / f"step_{step}"
        if not target.exists():
            super().save(step, tokens_seen, extra, parts)
            return
        states = [getattr(self.training, part).state_dict() for part in PARTS]
        self.write(target / "state", pickle.dumps([step, states]), "the state")


class RaisesNoException(InPlace):
    """Tells of a torn state with what is no `Exception`, as `torch.distributed.checkpoint` does."""

    def read(self, source: Path) -> tuple[int, list[Any]]:
        try:
            return super().read(source)
        except Exception as error:
            raise BaseException(f"{source} is torn") from error


class NeverAgain(Careful):
    """Can't save over the debris of a save that was killed."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if (self.folder / ".staged").exists():
            raise FileExistsError(".staged stands there already")
        super().save(step, tokens_seen, extra, parts)


class Elsewhere(Careful):
    """Writes beside its folder."""

    def __init__(self, settings: Settings, training: Training) -> None:
        super().__init__(settings, training)
        self.folder = Path(f"{settings.folder}-beside")
        self.folder.mkdir(exist_ok=True)


class OneFile(Careful):
    """A checkpoint is one file, written beside the folder and renamed into it: one or two operations a save."""

    layout = Layout(checkpoint=r"step_(?P<step>[0-9]+)", is_dir=False, required=(), pointer=None)
    claims = Claims("core", ("sync", "retention", "explicit"))

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        beside = Path(f"{self.folder}-temporary-{os.getpid()}")
        beside.write_bytes(self.files(step)["state"])
        os.rename(beside, self.folder / f"step_{step}")
        if self.settings.keep_last_n:
            for old in sorted(self.steps())[: -self.settings.keep_last_n]:
                (self.folder / f"step_{old}").unlink()

    def read(self, source: Path) -> tuple[int, list[Any]]:
        step, states = pickle.loads(source.read_bytes())
        return step, states

    def find(self) -> Path | None:
        return self.folder / f"step_{max(self.steps())}" if self.steps() else None


class OnlyItsOwnSteps(Careful):
    """An adapter that has no counterpart for a save under another step than the run's."""

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        if step != self.training.step:
            raise Unsupported("it counts the steps by itself")
        super().save(step, tokens_seen, extra, parts)


class Maps(Careful):
    """Writes its state through a shared map."""

    def write(self, path: Path, content: bytes, what: str) -> None:
        with open(path, "wb+") as file:
            file.truncate(len(content))
            with mmap.mmap(file.fileno(), len(content)) as shared:
                shared[:] = content
                shared.flush()
            os.fsync(file.fileno())


class RefusesResave(Careful):
    def replace(self, staged: Path, target: Path) -> None:
        raise FileExistsError(f"step {target.name.removeprefix('step_')} is saved already")


class Mixes(Careful):
    """Has the model in a file of its own, and replaces file after file when a step is saved again."""

    def files(self, step: int) -> dict[str, bytes]:
        model, *others = [getattr(self.training, part).state_dict() for part in PARTS]
        return {"model": pickle.dumps(model), "state": pickle.dumps([step, others])}

    def read(self, source: Path) -> tuple[int, list[Any]]:
        step, others = pickle.loads((source / "state").read_bytes())
        return step, [pickle.loads((source / "model").read_bytes()), *others]

    def save(self, step: int, tokens_seen: int, extra: Mapping[str, Any] | None, parts: Sequence[str]) -> None:
        target = self.folder / f"step_{step}"
        if not target.exists():
            super().save(step, tokens_seen, extra, parts)
            return
        for name, content in self.files(step).items():
            self.write(target / f"{name}.new", content, "the state")
            os.rename(target / f"{name}.new", target / name)


class Waits(Careful):
    """Takes what a killed save left for the lock of one that goes on."""

    def find(self) -> Path | None:
        while (self.folder / ".staged").exists():
            signal.pause()
        return super().find()


class Chancy(Careful):
    """Resumes from the newest checkpoint, and every third time from the oldest."""

    def find(self) -> Path | None:
        times = Path(f"{self.folder}-times")
        count = len(times.read_bytes()) if times.exists() else 0
        times.write_bytes(b"x" * (count + 1))
        whole = [(step, self.folder / f"step_{step}") for step in self.steps()]
        standing = sorted((step, path) for step, path in whole if self.is_whole(path))
        return standing[0 if count % 3 == 2 else -1][1] if standing else None
