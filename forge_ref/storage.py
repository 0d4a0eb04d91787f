"""Shards to and from disk, in DCP's format: stock DCP reads what is written here, and the reverse.

Invariants of a write: a rank has its shards on storage before the marker is
written, and only one rank makes the directory.  Of a read: all of it goes into
fresh host memory, no more than this rank holds, so that no live object is
changed: a load takes the memory of what it reads once more until it is done.
Ranks read on their own: nobody waits here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torch.distributed.checkpoint.metadata import Metadata

from forge_ref import archive, layout, marker, trust
from forge_ref.channel import ALONE, Channel
from forge_ref.engine import reading
from forge_ref.engine.leaves import Leaves, flatten, nested
from forge_ref.engine.writing import ShardWriter
from forge_ref.errors import DamagedError, naming
from forge_ref.manifest import Seal
from forge_ref.pieces import Piece

Keys = tuple[str | int, ...]


def write(
    state: Leaves | Mapping[str, Any],
    path: Path,
    channel: Channel = ALONE,
    shards: ShardWriter | None = None,
) -> Seal:
    """Write shards and marker into a directory; see `ShardWriter.write`; a writer that has written before is faster."""
    leaves = state if isinstance(state, Leaves) else flatten(state)
    return (shards or ShardWriter()).write(leaves, path, channel)


@dataclass(frozen=True)
class Shards:
    """What a directory of shards holds, known from its marker; the tensors are still on disk."""

    path: Path
    metadata: Metadata
    seals: Mapping[str, Seal]
    """Of the files of shards, by their names; another manager seals nothing."""
    is_sealed: bool
    """Whether a hash that was recorded at the save covers the marker, so that its sizes are true."""
    renamed: Mapping[str | int, str] = field(default_factory=dict)
    """Top-level keys that have another name to who reads."""

    @property
    def parts(self) -> set[str]:
        """The top-level keys of the state that was saved."""
        return {str(keys[0]) for keys in self._keys.values()}

    def read(
        self, is_wanted: Callable[[Keys], bool], place_of: Callable[[Keys], Piece | None] = lambda _: None
    ) -> dict[str, Any]:
        """Return what is wanted, as nested dicts; of a tensor that has a place here, only the values of that place.

        `DamagedError` names the file that is not what was written.
        """
        with naming(self.path / layout.MARKER):
            names = {name: keys for name, keys in self._keys.items() if is_wanted(keys)}
            places = {name: place_of(keys) for name, keys in names.items()}
            reader = reading.Reader(self.path, self.metadata, self.seals)
            if not self.is_sealed:
                reader.check_sizes(name for name, place in places.items() if place is None)
            return nested((names[name], value) for name, value in reader.read(places).items())

    def under(self, part: str) -> list[Keys]:
        """Return the keys of all that was saved under a top-level key."""
        return [keys for keys in self._keys.values() if keys[0] == part]

    @cached_property
    def _keys(self) -> dict[str, Keys]:
        """The keys in the nested state of each flat name: dict keys are text, list indices numbers."""
        places, renamed = self.metadata.planner_data or {}, self.renamed
        found = {name: cast(Keys, places.get(name, (name,))) for name in self.metadata.state_dict_metadata}
        if not renamed:
            return found
        return {name: (renamed[keys[0]], *keys[1:]) if keys[0] in renamed else keys for name, keys in found.items()}


def open_shards(path: Path, seal: Seal | None) -> Shards:
    """Return the shards of a directory by its marker; the errors are those of `marker.read`."""
    return Shards(path, *marker.read(path / layout.MARKER, seal), seal is not None)


def read_train_state(path: Path, seal: Seal | None = None, name: str = layout.TRAIN_STATE) -> bytes | None:
    """Return the file of the train state, trusted and verified; None if there is none, as with imported weights.

    `seal` is what its manager recorded of it, if it did.
    """
    file = path / name
    try:
        with trust.opened(file) as opened, naming(file):
            if seal is None:
                with open(opened.descriptor, "rb", closefd=False) as stream:
                    archive.check_size(stream, file)
            blob = opened.content(saved=None if seal is None else seal.size_bytes)
            if seal is not None:
                seal.check(file, blob)
            archive.checked_records(blob, file)
            return blob
    except FileNotFoundError:
        return None


def loads_dict(blob: bytes, path: Path | str, is_sealed: bool = False) -> Mapping[str, Any]:
    """Return a train state, a form, or a rank's own part of either; `path` is the place that errors name.

    `is_sealed`: a checksum that was recorded at the save covers it.
    """
    with naming(path):
        state = trust.loads_torch(blob, path, is_sealed)
    if not isinstance(state, dict):
        raise DamagedError(f"{path} contains a {type(state).__name__}, not a dict")
    return state
