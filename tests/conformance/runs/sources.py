"""What code a verdict was about: a fingerprint that changes when any of it does."""

import hashlib
import importlib.util
from pathlib import Path

_OURS = ("forge_spec", "forge_conformance", "forge_distributed")


def fingerprint(impl: str) -> str:
    """Of the specification, the suite, and the package or file of the manager; "" where that one is not found here."""
    name, _, _ = impl.partition(":")
    theirs = [Path(name)] if name.endswith(".py") else _files_of(name.partition(".")[0])
    if not theirs or not all(path.is_file() for path in theirs):
        return ""
    digest = hashlib.sha256()
    for path in (*(path for package in _OURS for path in _files_of(package)), *theirs):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _files_of(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)]
    return sorted(path for place in spec.submodule_search_locations for path in Path(place).rglob("*.py"))
