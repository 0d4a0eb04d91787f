"""Starts the warm server, `python path/to/worker --impl NAME --channel FD`, or what its first argument names.

These are `job`, a script under a launcher; `watched`, any command that is recorded; `warm`, forks that are a script.

Run from its files by any Python, so that the manager's environment needs
nothing of the suite: this module makes `forge_conformance` importable from
where it lies, installed there or not, and then never touches `sys.path` again
except to add the directory that the user runs the suite from.
"""

import importlib.util
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 -- the manager's own Python may be another one
    sys.exit("Python %d.%d is too old: the suite's worker needs 3.11." % sys.version_info[:2])  # noqa: UP031 -- the same

_PACKAGE = Path(__file__).resolve().parents[1]


def _load_package() -> None:
    spec = importlib.util.spec_from_file_location(
        "forge_conformance", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    assert spec is not None and spec.loader is not None, "an __init__.py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules["forge_conformance"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())  # was this folder, whose module names are not for the manager to see
    _load_package()
    if sys.argv[1] == "job":
        from forge_conformance.worker import job

        job.main(sys.argv[2:])
    elif sys.argv[1] == "watched":
        from forge_conformance.worker import watched

        watched.main(sys.argv[2:])
    elif sys.argv[1] == "warm":
        from forge_conformance.worker import warm

        warm.main(sys.argv[2:])
    else:
        from forge_conformance.worker.server import main

        sys.exit(main(sys.argv[1:]))
