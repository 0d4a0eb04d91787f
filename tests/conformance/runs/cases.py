"""Checkpoint folders that others wrote: the cases of `fixtures/golden` and `fixtures/torn`.

A case is a `case.json`, and the files that a released writer left.  A torn one
mostly starts from the files of a golden one, and says what was then done to
them.  Links and empty directories are made here, since archives keep neither.

Whether a manager can be asked about a folder is seen, not believed: its layout
has to be the writer's, and what it writes itself has to have the same names
inside, or it is another format in the same clothes.
"""

import json
import os
import pickletools
import shutil
import zipfile
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from forge_conformance.adapter import Layout

ROOMS = ("golden", "torn")
_MARKERS = ("model_and_optim/.metadata", ".metadata")
"""Where a checkpoint has the marker of its shards, in the designs that are known here."""


@dataclass(frozen=True)
class Case:
    """One folder that a manager has to come back from, or refuse."""

    name: str
    """golden/what or torn/what."""
    fields: dict[str, Any]
    """What its `case.json` says; the README of fixtures has a word on each field."""

    @property
    def clauses(self) -> tuple[str, ...]:
        """What it judges; the first takes the blame."""
        return tuple(self.fields["clauses"])

    @property
    def needs(self) -> tuple[str, ...]:
        """Capabilities without which a manager can't be asked."""
        return tuple(self.fields["needs"])

    @property
    def ranks(self) -> int:
        """How many ranks wrote it."""
        return int(self.fields["ranks"])

    @property
    def stages(self) -> int:
        """Of how many pipeline stages it is; 0 if there was no pipeline."""
        return int(self.fields["stages"])

    @property
    def lands(self) -> int | None:
        """Where a load comes back; None for a fresh start."""
        step: int | None = self.fields["load"]["lands"]
        return step

    @cached_property
    def layout(self) -> Layout:
        """What the writer's folders look like."""
        layout: dict[str, Any] = self.fields["layout"]
        return Layout(**{**layout, "required": tuple(layout["required"])})

    @cached_property
    def base(self) -> "Case | None":
        """The golden case whose files it starts from."""
        name = self.fields["starts_from"]
        return None if name is None else case(name)

    def fingerprints(self, of: str) -> dict[str, str]:
        """Of what was saved at a step, or at `step/ppN`: the suite's fingerprint of each piece of state."""
        saved = (self.base or self).fields["fingerprints"]
        found: dict[str, str] = saved.get(of, {})
        return found

    def put_into(self, folder: Path) -> None:
        """Make an existing folder this one; what was in it goes."""
        shutil.rmtree(folder)
        folder.mkdir()
        for one in (self.base, self):
            if one is not None and (_place(one.name) / "checkpoints").is_dir():
                shutil.copytree(_place(one.name) / "checkpoints", folder, dirs_exist_ok=True)
        for verb, *about in self.fields["then"]:
            _do(folder, verb, *about)


def _do(folder: Path, verb: str, path: str, more: str | int = "") -> None:
    """One thing that was done by hand."""
    match verb:
        case "remove":
            at = folder / path
            shutil.rmtree(at) if at.is_dir() else at.unlink()
        case "truncate":
            os.truncate(folder / path, int(more))
        case "copy":
            shutil.copytree(folder / path, folder / str(more))
        case "rename":
            os.rename(folder / path, folder / str(more))
        case "make":
            (folder / path).mkdir()
        case "link":
            os.symlink(str(more), folder / path)
        case other:
            raise AssertionError(f"nobody knows how to {other!r} a file of a case")


def _place(name: str) -> Path:
    return Path(str(files("forge_fixtures"))) / name


def case(name: str) -> Case:
    """The case of this name."""
    return Case(name, json.loads((_place(name) / "case.json").read_text(encoding="utf-8")))


def cases() -> list[Case]:
    """All of them, by name."""
    names = sorted(f"{room}/{path.parent.name}" for room in ROOMS for path in _place(room).glob("*/case.json"))
    return [case(name) for name in names]


def differs(own: Path, theirs: Path) -> str | None:
    """How a checkpoint directory of the manager's own differs from the writer's in the names inside; None if it fits.

    Of the shards the names of the model's tensors have to be the same, of the
    train state the keys have to be there.
    """
    try:
        marker = next((name for name in _MARKERS if (theirs / name).exists()), ".metadata")
        mine = {name for name in _texts((own / marker).read_bytes()) if name.startswith("model.")}
        other = {name for name in _texts((theirs / marker).read_bytes()) if name.startswith("model.")}
        if mine != other:
            return f"its shards name the model's tensors {sorted(mine)[:3]}, and these {sorted(other)[:3]}"
        if not (theirs / "train_state.pt").exists():
            return None
        keys = {"step", "tokens_seen", "scheduler", "dataloader"} - _texts(_pickle_of(own / "train_state.pt"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        return f"what it writes is of another format: {error}"
    return f"its train state has no {', '.join(sorted(keys))}" if keys else None


def _pickle_of(file: Path) -> bytes:
    """What `torch.save` wrote, without its tensors."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return archive.read(name)


def _texts(pickled: bytes) -> set[str]:
    """Every text in a pickle, which is taken apart and not run."""
    return {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)}
