"""The table at the end of a file of shards: where the bytes of each item are, and their hash.

    entry     offset of the item, offset and length of its values, hash of them
    end       magic, offset of the table, number of entries

An item that lies in a container has its values inside it; of any other the
values are the item itself.  `metadata.json` has the hash of the table, which
binds the file to its save.
"""

import os
import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

_ENTRY = struct.Struct("<3Q16s")
_END = struct.Struct("<8s2Q")
_MAGIC = b"forgeref"


def digest(content: bytes | memoryview) -> bytes:
    """Return the hash of a piece."""
    return xxhash.xxh3_128_digest(content)


hasher = xxhash.xxh3_128
"""Makes the same hash of content that comes in several parts."""


class Extent(NamedTuple):
    """Where an item lies in its file, and where its values are."""

    offset: int
    length: int
    start: int
    """Of the values, in the file; equal to `offset` if the item is not in a container of ours."""
    size: int
    """Of the values, in bytes."""


class Entry(NamedTuple):
    """An item of a file that was read."""

    start: int
    size: int
    digest: bytes


def packed(rows: Iterable[tuple[Extent, bytes]], offset: int) -> tuple[bytes, bytes]:
    """Return the table that stands at an offset, and its end, which is the end of the file."""
    table = b"".join(_ENTRY.pack(one.offset, one.start, one.size, hashed) for one, hashed in rows)
    return table, _END.pack(_MAGIC, offset, len(table) // _ENTRY.size)


def read(descriptor: int, size: int) -> tuple[bytes, str]:
    """Return the table of a file of this size, and its hash; nothing and no hash if the file does not end with one."""
    end = os.pread(descriptor, _END.size, max(0, size - _END.size))
    if len(end) == _END.size:
        magic, offset, count = _END.unpack(end)
        if magic == _MAGIC and offset + count * _ENTRY.size + _END.size <= size:
            table = os.pread(descriptor, count * _ENTRY.size, offset)
            return table, digest(table + end).hex()
    return b"", ""


def entries(table: bytes) -> dict[int, Entry]:
    """Return the entries by the offsets of their items."""
    return {offset: Entry(start, size, hashed) for offset, start, size, hashed in _ENTRY.iter_unpack(table)}
