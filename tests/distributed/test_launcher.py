"""The script of a user, started by `torchrun` as a user would, with a rank that dies and a launcher that restarts."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from forge_conformance.judging.judge import judges
from forge_conformance.runs.group import Shape
from forge_conformance.runs.scenario import Scenario

_UNTIL, _EVERY, _DIES_AT = 9, 2, 7
_PATIENCE_S = 180
"""How long nothing new may be told: several Pythons import torch one after another, on whatever cores there are."""


@judges("resume.continue", "resume.exact", needs=("distributed", "rng", "dataloader", "train-state"))
def test_a_job_that_torchrun_restarts_has_the_losses_of_one_that_never_died(
    run: Scenario, fewest: int, tmp_path: Path
) -> None:
    team = Shape(fewest)
    out = tmp_path / "told"
    out.mkdir()
    status, said = _torchrun(run, team, out, tmp_path)
    run.judge.tell(f"rank {team.last} kills itself at step {_DIES_AT}; torchrun starts all of them again")
    told = [_lines(out / f"losses-{rank}") for rank in range(team.ranks)]
    run.expect(
        "resume.continue",
        status == 0,
        expected=f"torchrun to end well at step {_UNTIL}, with one restart",
        seen=f"exit status {status}; rank 0 told: {told[0][-3:]}",
        detail=said[-3000:],
    )
    attempts = [[line for line in lines if line.startswith("attempt")] for lines in told]
    last_save = _DIES_AT // _EVERY * _EVERY
    allowed = {f"attempt 1 resumes at {step}" for step in ((last_save,) if run.mode == "sync" else (4, last_save))}
    run.expect(
        "resume.continue",
        all(len(lines) == 2 and lines[1] in allowed for lines in attempts),
        expected=f"every rank to start twice, and the second time: {' or '.join(sorted(allowed))}",
        seen=attempts,
    )
    losses = [_last_of_each_step(lines) for lines in told]
    expected = run.timeline(shape=team).losses_by_rank(0, _UNTIL)
    run.expect(
        "resume.exact",
        losses == expected,
        expected=f"the losses of a run that was never interrupted, on every rank: {expected}",
        seen=losses,
    )


def _torchrun(run: Scenario, team: Shape, out: Path, scratch: Path) -> tuple[int | str, str]:
    """The exit status of the launcher, and what it and the ranks have printed."""
    command = [str(run.implementation.environment["executable"]), "-m", "torch.distributed.run"]
    command += ["--nnodes=1", f"--nproc-per-node={team.ranks}", "--max-restarts=2", "--monitor-interval=0.1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={scratch / 'rendezvous'}", "--rdzv-conf=store_type=file"]
    command += [str(run.server.worker_path), "job", f"--impl={run.implementation.name}", f"--out={out}"]
    command += [f"--folder={run.folder.path}", f"--mode={run.mode}", f"--stages={team.stages}"]
    command += [f"--until={_UNTIL}", f"--every={_EVERY}", f"--dies-at={_DIES_AT}"]
    run.judge.tell(f"a script for {team} is started by torchrun; it saves every {_EVERY} steps")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = scratch / "torchrun.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
        try:
            status = _status(process, [log, *(out / f"losses-{rank}" for rank in range(team.ranks))])
        finally:
            _end(process)
    return status, log.read_text(errors="replace")


def _status(process: "subprocess.Popen[bytes]", told: list[Path]) -> int | str:
    """The exit status of the launcher, or that for a while nobody has told anything."""
    before = -1
    while (size := sum(len(_lines(file)) for file in told)) > before:
        before = size
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(_PATIENCE_S)
    return f"none, since nothing more was told for {_PATIENCE_S} s"


def _lines(file: Path) -> list[str]:
    """What a rank has told; nothing if it did not come so far."""
    return file.read_text(errors="replace").splitlines() if file.exists() else []


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The launcher ends its workers when it is told to; each of them leads a session of its own."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_of_each_step(lines: list[str]) -> list[str]:
    """Losses by step; of steps that were trained twice, the later one."""
    pairs = [line.split() for line in lines if not line.startswith("attempt")]
    losses = {int(step): loss for step, loss in pairs}
    return [losses[step] for step in sorted(losses)]
