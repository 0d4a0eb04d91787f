"""The last pages of a file: the loose values, each in a container or a pickle of its own, and the table."""

import functools
from collections.abc import Iterable
from typing import Any

import torch

from forge_ref import archive
from forge_ref.engine import flush, table
from forge_ref.engine.containers import container
from forge_ref.engine.leaves import Packed
from forge_ref.engine.table import Extent

_ALIGNMENT = 64
_PLAIN = (bool, int, float, str, type(None))


class Tail:
    """Loose values from an offset of the file on."""

    def __init__(self, values: Iterable[Any], offset: int) -> None:
        self._offset = offset
        self._content = bytearray()
        self.extents = [self._added(value) for value in values]

    def _added(self, value: Any) -> Extent:
        prefix, content, suffix = _parts(value)
        offset = self._offset + len(self._content)
        self._content += prefix + content + suffix
        self._content += bytes(-len(self._content) % _ALIGNMENT)
        length = len(prefix) + len(content) + len(suffix)
        return Extent(offset, length, offset + len(prefix), len(content))

    def rows(self) -> list[tuple[Extent, bytes]]:
        """Return each with the hash of its values."""
        view = memoryview(self._content)
        starts = [(one, one.start - self._offset) for one in self.extents]
        return [(one, table.digest(view[start : start + one.size])) for one, start in starts]

    def pages(self, rows: Iterable[tuple[Extent, bytes]]) -> tuple[memoryview, bytes]:
        """Return whole pages that end with the table of these rows, and the hash of the table."""
        at = flush.up(self._offset + len(self._content), _ALIGNMENT)
        packed, end = table.packed(rows, at)
        size = flush.up(at + len(packed) + len(end)) - self._offset
        view = memoryview(flush.pages(size))[:size]
        view[: len(self._content)] = self._content
        view[at - self._offset : at - self._offset + len(packed)] = packed
        view[size - len(end) :] = end
        return view, table.digest(packed + end)


def is_plain(value: Any) -> bool:
    """Return whether a value can't be changed, and is told from others by its text."""
    kinds = [type(item) for item in value] if type(value) is tuple else [type(value)]
    return all(kind in _PLAIN for kind in kinds)


def _parts(value: Any) -> tuple[bytes, bytes, bytes]:
    """Return what is written before the hashed bytes of a value, them, and what is written behind."""
    if isinstance(value, Packed):
        prefix, suffix = container(torch.uint8, torch.Size([len(value.content)]))
        return prefix, value.content, suffix
    if is_plain(value):
        return b"", _pickled_plain(repr(value), value), b""
    return b"", archive.of(value.detach().cpu() if isinstance(value, torch.Tensor) else value), b""


@functools.lru_cache(4096)
def _pickled_plain(_exact: str, value: Any) -> bytes:
    """Return the archive of a value; the text tells `1` from `True`, and 0.0 from -0.0."""
    return archive.of(value)
