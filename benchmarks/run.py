"""How fast the suite is, and what coordination costs: printed, never asserted.  Storage has a page, by `page.py`.

    python benchmarks/run.py            everything
    python benchmarks/run.py lives      a fresh process life from the warm server
    python benchmarks/run.py truth --against DIRECTORY
                                        this checkout's forge_ref against another one's, save and load of 200 MB
    python benchmarks/run.py suite      the whole suite against forge_ref, two processes
    python benchmarks/run.py matrix     the suite judged by mutants: processor time of each, and the whole
    python benchmarks/run.py crash      disks judged a second, of forge_ref and of stock DCP; what a death takes
    python benchmarks/run.py model      the exhaustive search of the specification's model: states, and states a second
    python benchmarks/run.py hooks      the second design: an idle hook, a start over 10,000 checkpoints, removals
    python benchmarks/run.py script     `forge-conformance script` beside ckpt-chaos: states, and states a second
    python benchmarks/run.py scale      what coordination costs with many ranks; `--write docs/SCALE.md` to keep it

Absolute times depend on the machine and on who else uses it; where two things
are compared they are measured in turns in one run, and the ratio is the result.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    jobs = {
        "lives": lives,
        "truth": truth,
        "suite": suite,
        "matrix": matrix,
        "crash": crash,
        "model": model,
        "hooks": hooks,
        "scale": scale,
        "script": script,
    }
    parser.add_argument("what", nargs="*", choices=[*jobs, []], default=[])
    parser.add_argument("--write", type=Path, help="a file to write the study of scale to, too")
    parser.add_argument("--against", type=Path, help="truth: a checkout, or a folder with its forge_ref")
    parser.add_argument("--rounds", type=int, default=21, help="truth: how many rounds (default: 21)")
    arguments = parser.parse_args()
    options = {
        "scale": (arguments.write,),
        "truth": (arguments.against, arguments.rounds),
    }
    for name in arguments.what or jobs:
        jobs[name](*options.get(name, ()))


def lives() -> None:
    """What a process life costs when torch and the manager are imported already, and what it would cost otherwise."""
    from forge_conformance.runs.server import Server

    server = Server("forge_ref", None)
    server.rehearse(["sync", "async"])
    try:
        spawned, whole = [], []
        for number in range(20):
            with tempfile.TemporaryDirectory() as folder:
                begun = time.perf_counter()
                worker = server.spawn()
                spawned.append(time.perf_counter() - begun)
                worker.open({"folder": folder, "mode": "sync"}, seed=number)
                worker.train(2)
                worker.save()
                worker.kill()
                whole.append(time.perf_counter() - begun)
    finally:
        server.close()
    command = [sys.executable, "-c", "import torch.distributed.checkpoint"]
    cold = _median(lambda: subprocess.run(command, check=True), rounds=3)
    life, full = statistics.median(spawned), statistics.median(whole)
    print(f"a fresh worker: {life * 1e3:.1f} ms; with training, a save and a kill: {full * 1e3:.1f} ms")
    print(f"  that is 1/{cold / life:.0f} of a Python that imports torch ({cold:.2f} s)")


def truth(against: Path | None = None, rounds: int = 21) -> None:
    """What this checkout's forge_ref costs over another one's: ratios with their spread, and nothing is judged."""
    from truth import compare

    print("truth needs --against DIRECTORY" if against is None else compare(against.resolve(), rounds))


def suite() -> None:
    """The whole suite at level strict, two processes, without the tests for several ranks and with them."""
    alone, said = _judged("--ranks", "none")
    print(f"the suite against forge_ref, -n 2: {alone:.1f} s without several ranks; {said}")
    both, said = _judged()
    print(f"  with 2 and 4 ranks: {both:.1f} s, which is {both - alone:.1f} s more; {said}")


def _judged(*options: str) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "forge_conformance.cli", "run", "--impl", "forge_ref", "--level", "strict"]
        command += ["-n", "2", "--out", out, *options]
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(out))
        return time.perf_counter() - begun, done.stdout.splitlines()[-2]


def matrix() -> None:
    """Every mutant, two at a time, and the base; the ones that take longest."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "forge_conformance.cli", "matrix", "-n", "2", "--out", out]
        subprocess.run(command, capture_output=True, cwd=out)
        found = json.loads((Path(out) / "matrix.json").read_text())
    each = sorted(found["mutants"], key=lambda mutant: mutant["cpu_seconds"], reverse=True)
    taken_s = [one["cpu_seconds"] for one in each]
    print(
        f"{len(each)} mutants: {sum(taken_s):.0f} s of processor time, {statistics.median(taken_s):.1f} s in the median"
    )
    print(f"  with the base: {found['seconds']} s")
    longest = [f"{one['name']} {one['cpu_seconds']} s" for one in each[:3]]
    print(f"  longest: {', '.join(longest)}")


def crash() -> None:
    """One scenario in every mode that is claimed, without leaving out writes; then the kills of one drill."""
    stock = "forge_fixtures.managers.dcp:StockDcp"
    for name, impl in (("forge_ref", "forge_ref"), ("stock DCP", stock)):
        options = ["--tier", "disks", "--every-write", "--level", "durable", "--scenario", "steady"]
        print(f"{name}: {_crashed(impl, *options)}")
    print(f"forge_ref: {_crashed('forge_ref', '--tier', 'deaths', '--scenario', 'resave')}")


def _crashed(impl: str, *options: str) -> str:
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "forge_conformance.cli", "crash", "--impl", impl, "-n", "2", *options]
        done = subprocess.run([*command, "--out", out], capture_output=True, text=True, cwd=out)
    return next(
        line for line in done.stdout.splitlines() if " distinct disks out of " in line or " on real processes, " in line
    )


def hooks() -> None:
    """The second design: an idle hook, a start over many old checkpoints, and the threads that remove."""
    from hooks import idle_hook, removals, start

    for study in (idle_hook, start, removals):
        print(study())


def model() -> None:
    """The whole scope, and the shortest trace of each broken manager; states and rates of one core."""
    from forge_spec.model.designs import DESIGNS
    from forge_spec.model.explore import explore, print_scope

    for design in DESIGNS.values():
        print_scope(design, "full")
        begun = time.process_time()
        found = [explore(design, design.scope_of(one), design.table_of(one)) for one in design.variants]
        seconds, states = time.process_time() - begun, sum(one.states for one in found)
        print(f"{len(found)} broken managers: {states:,} states until the shortest trace of each, {seconds:.1f} s")


def script() -> None:
    """`forge-conformance script` beside ckpt-chaos: how many distinct states each judges, and how fast."""
    from script import beside

    beside()


def scale(kept: Path | None = None) -> None:
    """Collectives, messages, connections and file operations of many ranks: counts and no times."""
    from scale import study

    found = study()
    if kept is not None:
        kept.write_text(found)
    print(found)


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _median(call: Callable[[], object], rounds: int) -> float:
    return statistics.median(_timed(call) for _ in range(rounds))


if __name__ == "__main__":
    main()
