"""The folders of others are what is told of them: whole where a load lands, small, and made by stock writers alone."""

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from forge_conformance.runs.cases import Case, cases
from forge_conformance.runs.folder import Folder
from forge_spec import BY_SLUG, CAPABILITIES, ephemeral, resume

FIXTURES = Path(__file__).parents[3] / "fixtures"
SCHEMA = json.loads((FIXTURES / "case.schema.json").read_text())
CASES = cases()
KEPT = [path for room in ("golden", "torn") for path in (FIXTURES / room).rglob("*") if path.is_file()]
STOCK = {
    "_codecs.encode",
    "collections.OrderedDict",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "olmo_core.distributed.checkpoint.filesystem._StorageInfo",
    "pathlib.PosixPath",
    "torch.Size",
    "torch._utils._rebuild_tensor_v2",
    "torch.ByteStorage",
    "torch.FloatStorage",
    "torch.LongStorage",
    "torch.distributed.checkpoint.filesystem._StorageInfo",
    "torch.distributed.checkpoint.metadata.BytesStorageMetadata",
    "torch.distributed.checkpoint.metadata.ChunkStorageMetadata",
    "torch.distributed.checkpoint.metadata.Metadata",
    "torch.distributed.checkpoint.metadata.MetadataIndex",
    "torch.distributed.checkpoint.metadata.StorageMeta",
    "torch.distributed.checkpoint.metadata.TensorProperties",
    "torch.distributed.checkpoint.metadata.TensorStorageMetadata",
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
    "torch.float32",
    "torch.int64",
    "torch.serialization._get_layout",
}
"""Whatever a pickle of stock writers looks up."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_told_of_a_case_has_its_form(case: Case) -> None:
    jsonschema.validate(case.fields, SCHEMA)
    assert set(case.clauses) <= BY_SLUG.keys()
    assert set(case.needs) <= CAPABILITIES.keys()
    assert (case.base is None) == ("fingerprints" in case.fields), "golden cases have fingerprints of their own"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_where_a_load_lands_is_where_the_specification_lets_it(case: Case, tmp_path: Path) -> None:
    case.put_into(tmp_path)
    load, folder = case.fields["load"], Folder(tmp_path, case.layout, case.stages)
    if load["refuses"] is not None:
        assert any(path.name == load["refuses"] for path in tmp_path.rglob("*"))
    elif load["path"] is not None:
        assert (tmp_path / load["path"] / ".metadata").exists()
        assert folder.steps() == frozenset(), "it is named because nothing else would find it"
    elif case.layout.pointer is None:
        assert ephemeral.resume_point(folder.complete()) == case.lands
    else:
        assert resume.may_land_on(folder.complete(), folder.latest()) == {case.lands}


@pytest.mark.parametrize("case", [case for case in CASES if case.base is not None], ids=lambda case: case.name)
def test_a_torn_folder_is_not_its_golden_one(case: Case, tmp_path: Path) -> None:
    assert case.base is not None
    looks = []
    for which, one in (("torn", case), ("golden", case.base)):
        (tmp_path / which).mkdir()
        one.put_into(tmp_path / which)
        folder = Folder(tmp_path / which, case.layout, case.stages)
        entries = sorted((str(path.relative_to(folder.path)), _size(path)) for path in folder.path.rglob("*"))
        looks.append((entries, folder.pointer_target()))
    assert looks[0] != looks[1]


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() and not path.is_symlink() else 0


def test_every_kept_file_is_of_a_case_and_all_of_them_are_small() -> None:
    places = [FIXTURES / case.name for case in CASES]
    assert [path for path in KEPT if not any(path.is_relative_to(place) for place in places)] == []
    assert not any(path.is_symlink() for path in KEPT), "archives drop links: a case tells of them"
    assert sum(path.stat().st_size for path in KEPT) < 1_200_000


def test_no_pickle_looks_up_what_a_stock_writer_does_not_need() -> None:
    looked_up = {name for path in KEPT for pickled in _pickles(path) for name in _globals(pickled)}
    assert looked_up == STOCK


def _pickles(path: Path) -> Iterator[bytes]:
    """The pickles in a file: a marker is one, an archive of `torch.save` has one, and a shard is many archives."""
    content = path.read_bytes()
    if path.name.startswith(".metadata") and path.suffix != ".json":
        yield content
    if path.suffix not in (".pt", ".ckpt", ".distcp"):
        return
    end = 0
    while (found := content.find(b"PK\x05\x06", end)) >= 0:
        with zipfile.ZipFile(io.BytesIO(content[end : found + 22])) as archive:
            yield from (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
        end = found + 22


def _globals(pickled: bytes) -> Iterator[str]:
    """The full names that it looks up: the texts before a look-up, which may come out of the pickler's memory."""
    texts: list[str] = []
    memory: dict[int, str] = {}
    last = ""
    for operation, argument, _ in pickletools.genops(pickled):
        match operation.name:
            case "GLOBAL":
                yield str(argument).replace(" ", ".")
            case "STACK_GLOBAL":
                yield ".".join(texts[-2:])
            case "MEMOIZE":
                memory[len(memory)] = last
                continue
            case "BINPUT" | "LONG_BINPUT":
                memory[argument] = last
                continue
            case "BINGET" | "LONG_BINGET":
                argument = memory[argument]
        last = argument if isinstance(argument, str) else ""
        texts += [last] if last else []
