"""Orbax saves into a folder called `run[12]` without an error, and can't restore anything from it.

The same program runs in `run12` and in `run[12]`: three steps are saved, each
save returns True, and `wait_until_finished` returns.  Exits with 1 if the
restore works in the first folder and fails in the second, else with 0.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
try:
    import numpy as np
    from orbax import checkpoint as ocp
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

logging.getLogger("absl").setLevel(logging.ERROR)

STEPS = (1, 2, 3)
WEIGHTS = np.arange(4.0)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        restored = [saves_and_restores(Path(folder, name)) for name in ("run12", "run[12]")]
    return 1 if restored == [True, False] else 0


def saves_and_restores(run: Path) -> bool:
    with ocp.CheckpointManager(run) as manager:
        returned = [manager.save(step, args=ocp.args.StandardSave({"weights": WEIGHTS * step})) for step in STEPS]
        manager.wait_until_finished()
    files = sorted(path.name for path in run.joinpath(str(STEPS[-1]), "default").iterdir())
    print(f"{run.name}: save returned {returned}; the newest step holds {', '.join(files)}")
    with ocp.CheckpointManager(run) as manager:
        step = manager.latest_step()
        try:
            weights = manager.restore(step, args=ocp.args.StandardRestore())["weights"]
        except Exception as error:
            print(f"{run.name}: latest_step() is {step}; its restore raises {type(error).__name__}: {beginning(error)}")
            return False
    print(f"{run.name}: latest_step() is {step}; its restore returns {weights}")
    return bool((weights == WEIGHTS * step).all())


def beginning(error: Exception) -> str:
    return str(error).splitlines()[0][:90]


if __name__ == "__main__":
    sys.exit(main())
