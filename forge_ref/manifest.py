"""What `metadata.json` says of a checkpoint, and how that binds the other files to it.

    {"step": 7, "tokens_seen": 70, "milestone": false,
     "files": {".metadata": {"size_bytes": 812, "xxh3": "0f3ac2d1..."},
               "train_state.pt": {"size_bytes": 9120, "xxh3": "77a01b5e..."}},
     "metadata_xxh3": "5ac81d00..."}

Invariants: `files` has the size and the hash of the train state and of each
marker, a marker those of the files of shards (see `marker`), and each of these
the hash of every piece in it (see `engine`), so all files of a checkpoint are of
one save; and `metadata_xxh3` covers all else in the object, so no value of it is
believed after a bit has flipped.

Other managers write neither, and earlier versions of this one wrote checksums
in other places; theirs is read as it is.  A checkpoint is this manager's if there
are seals behind its marker (see `marker`): in both designs it is not loaded
without its checksums (see `read_sealed`), unless as imported weights.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forge_ref import files
from forge_ref.engine.table import digest
from forge_ref.errors import DamagedError
from forge_ref.messages import printable

LIMIT = 64 << 20  # bytes: the file is for people and small, whatever a freeze list holds
_FILES = "files"
_HASH = "metadata_xxh3"


@dataclass(frozen=True)
class Seal:
    """The size and the hash that a file had when it was saved."""

    size_bytes: int
    xxh3: str

    @classmethod
    def of(cls, content: bytes) -> "Seal":
        """Return the seal of a file with this content."""
        return cls(len(content), digest(content).hex())

    def fits(self, path: Path) -> bool:
        """Return whether the file there is the one that was saved."""
        try:
            with files.opened(path) as file:
                return Seal.of(file.content(self.size_bytes)) == self
        except (OSError, DamagedError):
            return False

    def check(self, path: Path, content: bytes) -> None:
        """`DamagedError` unless the content is what was saved."""
        if (found := Seal.of(content)) != self:
            raise DamagedError(
                f"{path} is damaged, or of another save: it has {found.size_bytes:,} bytes, hash {found.xxh3}, "
                f"and {self.size_bytes:,} bytes with {self.xxh3} were saved; resume from another checkpoint"
            )


def written(content: Mapping[str, Any], seals: Mapping[str, Seal]) -> bytes:
    """Return the file for this content; `seals` by the names of the files, none while they are not written yet.

    `ValueError` for more than `LIMIT` bytes, which `read` would refuse.
    """
    recorded = dict(content)
    if seals:
        recorded[_FILES] = {name: asdict(seal) for name, seal in sorted(seals.items())}
        recorded[_HASH] = _hash(recorded)
    blob = json.dumps(recorded, indent=2).encode()
    if len(blob) > LIMIT:
        raise ValueError(f"the metadata has {len(blob):,} bytes, and at most {LIMIT:,} are read again; save less in it")
    return blob


def read(path: Path) -> dict[str, Any]:
    """Return the content of the file.

    `OSError` or `ValueError` if it can't be read or parsed.  `DamagedError`
    names the file if it can be parsed and is not what this manager wrote.
    """
    with files.opened(path) as file:
        blob = file.content(LIMIT)
    try:
        content = json.loads(blob.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{printable(path)}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{printable(path)} contains a {type(content).__name__}, not a JSON object")
    if _HASH in content or seals(content):
        _check(path, content)
    return content


def read_sealed(path: Path, is_ours: Callable[[], bool]) -> dict[str, Any]:
    """Return the content of the file, as `read`.

    `DamagedError` also for one that is missing or has no checksums in a checkpoint of this manager, which always
    writes them.
    """
    try:
        content = read(path)
    except FileNotFoundError:
        if not is_ours():
            raise
        raise DamagedError(
            f"{path} is missing, and so are the checksums that this manager saved with the checkpoint; "
            "put the file back, or resume from another checkpoint"
        ) from None
    if not seals(content) and is_ours():
        raise DamagedError(
            f"{path} is damaged: it lacks the checksums that this manager saved with the checkpoint; "
            "put the right file back, or resume from another checkpoint"
        )
    return content


def _check(path: Path, content: Mapping[str, Any]) -> None:
    rest = {key: value for key, value in content.items() if key != _HASH}
    if content.get(_HASH) != _hash(rest):
        raise DamagedError(
            f"{path} is damaged: its content has hash {_hash(rest)}, and {content.get(_HASH)!r} was "
            "written; put the right file back, or resume from another checkpoint"
        )


def _hash(content: Mapping[str, Any]) -> str:
    """Return a hash of what JSON keeps of the content, whatever the order of the keys."""
    canonical = json.dumps(json.loads(json.dumps(content)), sort_keys=True)
    return digest(canonical.encode()).hex()


def seals(content: Mapping[str, Any]) -> dict[str, Seal]:
    """Return the seals by the names of the files in the checkpoint.

    There are none if another manager saved it, or an earlier version of this one.
    """
    recorded = content.get(_FILES)
    if not isinstance(recorded, Mapping):
        return {}
    return {
        name: Seal(seal["size_bytes"], seal["xxh3"])
        for name, seal in recorded.items()
        if isinstance(seal, Mapping) and seal.keys() >= {"size_bytes", "xxh3"}
    }
