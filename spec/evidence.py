"""What stands behind a clause: predicates, vectors, the model, the tests that judge it and the mutants that break it.

Everything here is computed.  Vectors and the model come from this package.  Tests, mutants and the folders of other
writers are files of a checkout, which are read as text: the specification imports none of them.

Invariant: what is listed depends on the files alone, and is sorted, so that two readers of one checkout list the same.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from forge_spec import vectors
from forge_spec.clauses import Clause
from forge_spec.model.designs import DESIGNS

HERE = Path(__file__).resolve().parent
"""The directory of this package: `spec` in a checkout."""

REPOSITORIES: Mapping[str, str] = MappingProxyType(
    {
        "accelerate": "huggingface/accelerate",
        "ace": "ai2cm/ace",
        "ao": "pytorch/ao",
        "Automodel": "NVIDIA-NeMo/Automodel",
        "Composer": "mosaicml/composer",
        "DeepSpeed": "deepspeedai/DeepSpeed",
        "Detectron.pytorch": "roytseng-tw/Detectron.pytorch",
        "diffusion-pipe": "tdrussell/diffusion-pipe",
        "ignite": "pytorch/ignite",
        "KempnerForge": "KempnerInstitute/KempnerForge",
        "Lightning": "Lightning-AI/pytorch-lightning",
        "litgpt": "Lightning-AI/litgpt",
        "lora-scripts-next": "wochenlong/lora-scripts-next",
        "ludwig": "ludwig-ai/ludwig",
        "marin": "marin-community/marin",
        "mechanic": "optimizedlearning/mechanic",
        "Megatron-Bridge": "NVIDIA-NeMo/Megatron-Bridge",
        "Megatron-LM": "NVIDIA/Megatron-LM",
        "miles": "radixark/miles",
        "mindone": "mindspore-lab/mindone",
        "nanotron": "huggingface/nanotron",
        "NeMo": "NVIDIA-NeMo/NeMo",
        "nnabla-nas": "sony/nnabla-nas",
        "nvidia-resiliency-ext": "NVIDIA/nvidia-resiliency-ext",
        "OLMo-core": "allenai/OLMo-core",
        "OneTrainer": "Nerogar/OneTrainer",
        "Orbax": "google/orbax",
        "prodigy-plus-schedule-free": "LoganBooker/prodigy-plus-schedule-free",
        "PyTorch": "pytorch/pytorch",
        "pytorch-gradual-warmup-lr": "ildoonet/pytorch-gradual-warmup-lr",
        "Samudra": "m2lines/Samudra",
        "slime": "THUDM/slime",
        "speculators": "vllm-project/speculators",
        "stable-pretraining": "galilai-group/stable-pretraining",
        "timm": "huggingface/pytorch-image-models",
        "torchtitan": "pytorch/torchtitan",
        "torchtune": "meta-pytorch/torchtune",
        "TransformerEngine": "NVIDIA/TransformerEngine",
        "transformers": "huggingface/transformers",
        "verl": "volcengine/verl",
        "waifu-diffusion": "harubaru/waifu-diffusion",
        "yolov3": "ultralytics/yolov3",
    }
)
"""The projects that mutants cite, and where each of them is on GitHub."""


@dataclass(frozen=True, order=True)
class Issue:
    """An issue or pull request of a public project."""

    project: str
    number: int

    @property
    def url(self) -> str:
        """Where it can be read; GitHub redirects from an issue's address to a pull request's."""
        return f"https://github.com/{REPOSITORIES[self.project]}/issues/{self.number}"

    def __str__(self) -> str:
        return f"{self.project} #{self.number}"


@dataclass(frozen=True)
class Test:
    """A test of the suite, or a folder that one is made from; `name` is the one that a report has."""

    name: str
    path: Path
    clauses: tuple[str, ...]


@dataclass(frozen=True)
class Mutant:
    """A manager with one mistake: its first sentence, the clauses that it breaks, and where the mistake happened."""

    path: Path
    mistake: str
    clauses: tuple[str, ...]
    issues: tuple[Issue, ...]

    @property
    def name(self) -> str:
        """The name that reports have."""
        return self.path.stem


@dataclass(frozen=True)
class Predicate:
    """A function of a chapter that decides a clause, or a constant that it is decided by."""

    chapter: str
    name: str

    @property
    def path(self) -> Path:
        """The file that defines it."""
        return HERE / f"{self.chapter}.py"

    def __str__(self) -> str:
        return f"{self.chapter}.{self.name}"


@dataclass(frozen=True)
class Vectors:
    """The cases of one chapter's file whose wrong answer breaks a clause; `corners` are those answered by hand."""

    chapter: str
    count: int
    corners: tuple[str, ...]

    @property
    def corners_path(self) -> Path:
        """The file with the corners."""
        return HERE / "questions" / f"{self.chapter}.py"


@dataclass(frozen=True)
class Modelled:
    """The invariant of the model that formalises a clause, and the managers of the model that break it."""

    sentence: str
    variants: tuple[str, ...]
    room: str
    """What the names of the design's modules begin with."""

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files with the invariant and with those managers."""
        return HERE / "model" / f"{self.room}invariants.py", HERE / "model" / f"{self.room}variants.py"


@dataclass(frozen=True)
class Evidence:
    """All that is known of one clause."""

    predicates: tuple[Predicate, ...]
    vectors: tuple[Vectors, ...]
    model: Modelled | None
    """None if the model can't express it."""
    tests: tuple[Test, ...]
    mutants: tuple[Mutant, ...]

    @property
    def issues(self) -> tuple[Issue, ...]:
        """The public issues that its mutants cite."""
        return tuple(sorted({issue for mutant in self.mutants for issue in mutant.issues}))


def of(clause: Clause, tests: Iterable[Test], mutants: Iterable[Mutant]) -> Evidence:
    """Return what stands behind a clause, given the suite's tests and the mutants, if there are any."""
    return Evidence(
        predicates=tuple(_predicate(clause, name) for name in clause.predicates),
        vectors=vectors_of(clause.slug),
        model=next(_modelled(clause.slug), None),
        tests=tuple(test for test in tests if clause.slug in test.clauses),
        mutants=tuple(mutant for mutant in mutants if clause.slug in mutant.clauses),
    )


def _modelled(slug: str) -> Iterator[Modelled]:
    for design in DESIGNS.values():
        broken = tuple(variant.name for variant in design.variants if variant.breaks == slug and not variant.is_lazy)
        for invariant in design.invariants:
            if invariant.clause == slug:
                yield Modelled(invariant.sentence, broken, design.room)


def _predicate(clause: Clause, name: str) -> Predicate:
    """A name with a dot is of another chapter."""
    chapter, _, function = name.rpartition(".")
    return Predicate(chapter or clause.chapter, function)


# -- vectors ----------------------------------------------------------------------------


@cache
def _cases() -> Mapping[str, list[tuple[str, str, bool]]]:
    """Of each clause the chapter, the id and whether it is a corner, for each case."""
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for chapter in vectors.CHAPTERS:
        for case in vectors.cases(chapter):
            for slug in case["clauses"]:
                found.setdefault(slug, []).append((chapter, case["id"], "why" in case))
    return found


def vectors_of(slug: str) -> tuple[Vectors, ...]:
    """Return the vectors of a clause, one entry for each file that has some.

    >>> [(found.chapter, found.count > 100, found.corners) for found in vectors_of("commit.monotone")]
    [('commit', False, ('commit/order/pointer-goes-back',))]
    """
    cases = _cases().get(slug, [])
    return tuple(
        Vectors(
            chapter,
            count=sum(of == chapter for of, _, _ in cases),
            corners=tuple(name for of, name, is_corner in cases if of == chapter and is_corner),
        )
        for chapter in vectors.CHAPTERS
        if any(of == chapter for of, _, _ in cases)
    )


# -- tests, as text ---------------------------------------------------------------------


def tests_in(*directories: Path) -> tuple[Test, ...]:
    """Return every test below these directories that declares its clauses, by `@judges("a.clause", ...)`."""
    return tuple(
        test
        for directory in directories
        for path in sorted(directory.rglob("test_*.py"))
        for test in _tests_of(path, ast.parse(path.read_text(encoding="utf-8")))
    )


def _tests_of(path: Path, module: ast.Module) -> Iterator[Test]:
    constants = dict(_constants(module))
    functions = (node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))
    for function in functions:
        slugs = tuple(slug for node in _judged(function) for slug in _texts(node, constants))
        if slugs:
            topic, what = path.stem.removeprefix("test_"), function.name.removeprefix("test_")
            yield Test(f"{topic}/{what.replace('_', '-')}", path, slugs)


def _constants(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """What a module's names stand for, where that is written down as `NAME = ...`."""
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _judged(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """The arguments of `@judges`."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "judges":
            yield from decorator.args


def _texts(node: ast.expr, constants: Mapping[str, ast.expr]) -> Iterator[str]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.Name(id=name):
            yield from _texts(constants[name], constants)
        case ast.Starred(value=value):
            yield from _texts(value, constants)
        case ast.Tuple(elts=elements):
            for element in elements:
                yield from _texts(element, constants)


def folders_in(fixtures: Path) -> tuple[Test, ...]:
    """Return the folders of other writers, each with the clauses that a manager which loads it is judged by."""
    found = sorted(path for room in ("golden", "torn") for path in (fixtures / room).glob("*/case.json"))
    return tuple(
        Test(
            f"golden/{path.parent.parent.name}-{path.parent.name}",
            path,
            tuple(json.loads(path.read_text(encoding="utf-8"))["clauses"]),
        )
        for path in found
    )


# -- mutants, as text -------------------------------------------------------------------


def mutants_in(directory: Path) -> tuple[Mutant, ...]:
    """Return the mutants of a directory; none if it is not there, as beside an installed suite."""
    found = sorted(path for path in directory.glob("*.py") if not path.name.startswith("_"))
    return tuple(_mutant(path, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") for path in found)


def _mutant(path: Path, docstring: str) -> Mutant:
    (named,) = re.findall(r"^Clause: (.+)$", docstring, re.MULTILINE) or [""]
    clauses = tuple(slug.strip() for slug in named.split(",") if slug.strip())
    return Mutant(path, docstring.partition("\n")[0], clauses, tuple(dict.fromkeys(issues_in(docstring))))


def issues_in(text: str) -> Iterator[Issue]:
    """The issues that a text cites: a project and its numbers, until another project is named.

    >>> list(map(str, issues_in("KempnerForge #102, fixed in #103; torchtitan #4197 and #4198.")))
    ['KempnerForge #102', 'KempnerForge #103', 'torchtitan #4197', 'torchtitan #4198']
    """
    known = {name.lower(): name for name in REPOSITORIES}
    project = ""
    for word, number in re.findall(r"([\w.-]+)?,?\s*#(\d+)", text):
        project = known.get(word.lower(), project if word in ("and", "in", "") else "")
        if not project:
            raise ValueError(f"#{number} is cited of {word!r}, which is not a project in REPOSITORIES")
        yield Issue(project, int(number))
