"""What somebody may have put into a checkpoint, in the form that its own writer gives it, and a limit on memory.

Only what knows DCP's classes can write a marker, so it is done here and not in
the suite.  A rewritten marker is one that stock DCP might have left: nothing
that another manager notes in it is kept.
"""

import os
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

_HUGE = 10**15
_DEEP = 100_000


def rewrite_marker(path: str, how: str, value: str) -> str:
    """Write the marker anew, changed in one way; the name of the value that it is about."""
    marker = Path(path)
    metadata: Metadata = pickle.loads(marker.read_bytes())
    metadata.storage_data = {
        index: _StorageInfo(stored.relative_path, stored.offset, stored.length)
        for index, stored in metadata.storage_data.items()
    }
    name = next(
        name
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and entry.size.numel() > 1
    )
    written = _CHANGES[how](metadata, name, value)
    marker.write_bytes(pickle.dumps(written))
    return name


def _nothing(metadata: Metadata, name: str, value: str) -> Any:
    return metadata


def _elsewhere(metadata: Metadata, name: str, prefix: str) -> Any:
    for stored in metadata.storage_data.values():
        stored.relative_path = prefix + stored.relative_path
    return metadata


def _huge(metadata: Metadata, name: str, value: str) -> Any:
    entry = metadata.state_dict_metadata[name]
    assert isinstance(entry, TensorStorageMetadata), "the name is that of a tensor"
    size = torch.Size([_HUGE, *entry.size[1:]])
    chunks = [replace(chunk, sizes=size) for chunk in entry.chunks]
    metadata.state_dict_metadata[name] = replace(entry, size=size, chunks=chunks)
    return metadata


def _doubled(metadata: Metadata, name: str, ending: str) -> Any:
    new = name + ending
    metadata.state_dict_metadata[new] = metadata.state_dict_metadata[name]
    *above, last = metadata.planner_data[name]
    metadata.planner_data[new] = (*above, f"{last}{ending}")
    for index in [index for index in metadata.storage_data if index.fqn == name]:
        metadata.storage_data[MetadataIndex(new, index.offset, index.index)] = metadata.storage_data[index]
    return metadata


def _stored_nowhere(metadata: Metadata, name: str, value: str) -> Any:
    metadata.storage_data = {}
    return metadata


def _stored_before_the_file(metadata: Metadata, name: str, value: str) -> Any:
    for stored in metadata.storage_data.values():
        stored.offset = -4096
    return metadata


def _no_list_of_chunks(metadata: Metadata, name: str, value: str) -> Any:
    metadata.state_dict_metadata[name].chunks = "chunks"  # type: ignore[union-attr]  # that is the point
    return metadata


def _too_deep(metadata: Metadata, name: str, value: str) -> Any:
    metadata.planner_data[name] = (*metadata.planner_data[name], *["deeper"] * _DEEP)
    return metadata


def _below_a_value(metadata: Metadata, name: str, value: str) -> Any:
    metadata.planner_data = {one: metadata.planner_data[name] for one in metadata.planner_data}
    metadata.planner_data[list(metadata.planner_data)[-1]] = (*metadata.planner_data[name], "below")
    return metadata


def _no_marker(metadata: Metadata, name: str, value: str) -> Any:
    return [name]


_CHANGES: dict[str, Callable[[Metadata, str, str], Any]] = {
    "nothing": _nothing,
    "elsewhere": _elsewhere,
    "huge": _huge,
    "doubled": _doubled,
    "stored-nowhere": _stored_nowhere,
    "stored-before-the-file": _stored_before_the_file,
    "no-list-of-chunks": _no_list_of_chunks,
    "too-deep": _too_deep,
    "below-a-value": _below_a_value,
    "no-marker": _no_marker,
}


def limit_memory(more_bytes: int) -> None:
    """From here on this process gets so much more memory, and no more."""
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + more_bytes, taken + more_bytes))
