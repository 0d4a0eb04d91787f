"""Finds the manager that `--impl` names, and says in one paragraph why it could not.

Four spellings, one meaning each:

    package.module              a drop-in manager: the module has CheckpointManager and CheckpointConfig, or, of the
                                second design, CheckpointerCallback and TrainingRun, or all of them
    package.module:Class        an Adapter subclass
    path/to/file.py:Class       an Adapter subclass in a file that belongs to no package
    path/to/file.py             a drop-in manager, or the only Adapter subclass in that file
"""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from forge_conformance.adapter import Adapter, Claims, Layout, Traits

from .drop_in import drop_in, missing_names
from .hooked import hooked, is_offered


class CannotJudge(Exception):
    """`--impl` does not lead to a manager; the text says what was seen and the way out."""


def find(name: str) -> type[Adapter]:
    """The adapter class that drives what `name` names; `CannotJudge` otherwise."""
    where, _, attribute = name.partition(":")
    if not where:
        raise CannotJudge(f"--impl is {name!r}, which names no module; write package.module, or file.py:YourAdapter.")
    module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    if attribute:
        return _checked(_attribute(module, attribute, where), name)
    adapters = [value for value in vars(module).values() if _is_adapter(value) and value.__module__ == module.__name__]
    if len(adapters) == 1:
        return _checked(adapters[0], name)
    if len(adapters) > 1:
        choices = ", ".join(f"{where}:{adapter.__name__}" for adapter in adapters)
        raise CannotJudge(f"{where} has several adapters; name one of them: {choices}.")
    missing = missing_names(module)
    if missing and is_offered(module):
        return hooked(module)
    if missing:
        raise CannotJudge(
            f"The module {where} was imported, but it lacks {', '.join(missing)}, so it is not a drop-in manager, and "
            "no subclass of forge_conformance.adapter.Adapter is defined in it. Name the module that has the drop-in "
            "API, or write an adapter (forge_conformance/adapter.py is all of it) and pass --impl your_file.py:Yours."
        )
    return drop_in(module)


def _from_file(path: Path) -> ModuleType:
    """Under a name of its own, and with its neighbours last on the path: `orbax.py` must not hide the package orbax."""
    if not path.is_file():
        raise CannotJudge(f"--impl names the file {path}, and there is no such file in {Path.cwd()}.")
    name = f"implementation_under_test_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.append(str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise CannotJudge(
            f"--impl names the module {name}, and Python {sys.executable} finds no module {error.name}. Install it "
            "there, run from the directory that contains it, or point --python at the environment that has it."
        ) from None


def _attribute(module: ModuleType, name: str, where: str) -> object:
    try:
        return getattr(module, name)
    except AttributeError:
        known = ", ".join(key for key, value in vars(module).items() if _is_adapter(value)) or "none"
        raise CannotJudge(f"{where} has no {name!r}; adapters defined there: {known}.") from None


def _is_adapter(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Adapter) and value is not Adapter


def _checked(adapter: object, name: str) -> type[Adapter]:
    if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
        raise CannotJudge(f"{name} is {adapter!r}, not a subclass of forge_conformance.adapter.Adapter.")
    lacking = [duty for duty in ("save", "wait", "load") if getattr(adapter, duty) is getattr(Adapter, duty)]
    if lacking:
        raise CannotJudge(f"The adapter {name} does not define {', '.join(lacking)}; save, wait and load are its duty.")
    if not isinstance(adapter.claims, Claims) or not isinstance(adapter.layout, Layout):
        raise CannotJudge(f"The adapter {name} needs `claims = Claims(...)` and `layout = Layout(...)`.")
    if not isinstance(adapter.traits, Traits):
        raise CannotJudge(f"The adapter {name} has traits = {adapter.traits!r}; write `traits = Traits(...)`.")
    _check_names(adapter.layout, name)
    _check_parts(adapter.claims, adapter.layout, name)
    return adapter


def _check_names(layout: Layout, name: str) -> None:
    """`checkpoint` and `name` have to be about the same names."""
    try:
        pattern = re.compile(layout.checkpoint)
    except (re.error, TypeError) as error:
        raise CannotJudge(f"The layout of {name} has no regular expression in `checkpoint`: {error}.") from None
    if "step" not in pattern.groupindex:
        raise CannotJudge(
            f"The layout of {name} has no group (?P<step>...) in {layout.checkpoint!r}. The step has to be in the "
            "name: a manager that overwrites one file for ever has no checkpoints to tell apart, and can't be judged."
        )
    try:
        match = pattern.fullmatch(layout.name.format(step=10))
    except (LookupError, ValueError, AttributeError):
        match = None
    if match is None or match["step"] != "10":
        raise CannotJudge(
            f"The layout of {name} names the checkpoint of a step {layout.name!r}, which `checkpoint`, "
            f"{layout.checkpoint!r}, does not read back; write a name with {{step}} in it that it matches."
        )


def _check_parts(claims: Claims, layout: Layout, name: str) -> None:
    """What a layout has to have for what it says it is."""
    for field, value in (
        ("claims.capabilities", claims.capabilities),
        ("claims.without", claims.without),
        ("layout.required", layout.required),
    ):
        if isinstance(value, str) or not all(isinstance(word, str) for word in value):
            raise CannotJudge(f"{field} of {name} is {value!r}; write a tuple of texts, ('like', 'this').")
    if layout.is_dir and not layout.required:
        raise CannotJudge(f"The layout of {name} requires nothing of a directory, so a torn one could not be told.")
    if layout.pointer_kind not in ("symlink", "text"):
        raise CannotJudge(f"The layout of {name} has the pointer_kind {layout.pointer_kind!r}, not symlink or text.")
    if "pointer" in claims.capabilities and layout.pointer is None:
        raise CannotJudge(f"{name} claims `pointer`, but its layout does not say which entry of the folder that is.")
