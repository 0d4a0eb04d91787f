"""What the server does before it forks lives: they find torch ready, and nothing else."""

import json
import subprocess
import sys
import threading

import pytest

from forge_conformance.worker.practice import is_harmless

_SEEN_AROUND_PRACTICE = """
import json, os, random, signal, sys, warnings
import numpy, torch
import torch.distributed as dist
from forge_conformance.worker import practice, ranks
from forge_conformance.worker.server import _warm_torch

def seen():
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "stream of python": repr(random.getstate()),
        "stream of torch": torch.get_rng_state().tolist(),
        "stream of numpy": numpy.random.get_state()[1].tolist(),
        "hook": repr(sys.excepthook),
        "filters": len(warnings.filters),
        "signals": [repr(signal.getsignal(number)) for number in range(1, 32)],
        "environment": dict(os.environ),
        "groups": [dist.is_initialized(), len(dist.distributed_c10d._world.pg_map)],
        "gradients": torch.is_grad_enabled(),
    }

with_ranks = json.loads(sys.argv[1])
_warm_torch()
before = seen()
is_harmless = practice.is_harmless(lambda: practice.practise(with_ranks))
practice.practise(with_ranks)
print(json.dumps([is_harmless, before, seen()]))
"""


@pytest.mark.parametrize("with_ranks", [False, True])
def test_practice_leaves_nothing_that_a_life_could_see(with_ranks: bool) -> None:
    command = [sys.executable, "-c", _SEEN_AROUND_PRACTICE, json.dumps(with_ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    is_harmless, before, after = json.loads(done.stdout)
    assert is_harmless, "practice fails with the torch that is tested here"
    assert after == before


def _fails() -> None:
    raise RuntimeError("this torch has no such group")


def test_practice_that_raises_or_leaves_a_thread_is_not_for_a_process_that_forks() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    assert not is_harmless(_fails)
    assert not is_harmless(thread.start)
    over.set()
    thread.join()
    assert is_harmless(lambda: None)
