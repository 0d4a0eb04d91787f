"""What only an accelerator can show; every other test runs on one as well, with `--device cuda`.

Ranks talk over NCCL there, with a CPU group beside it, one GPU to a rank.
"""

from forge_conformance.judging.judge import judges
from forge_conformance.runs.scenario import Scenario
from forge_conformance.runs.state import STATE


@judges("commit.pinned")
def test_a_pinned_save_returns_while_the_stream_before_it_is_still_busy(run: Scenario) -> None:
    run.require_gpus(1)
    life = run.start(mode="pinned")
    life.train_to(2)
    life.save()
    life.wait()
    life.train_to(4)
    run.judge.tell("seconds of work are queued on the compute stream, and then step 4 is saved")
    found = life.worker.call("save_while_busy")
    run.expect(
        "commit.pinned",
        found["still_busy"],
        expected="save to return while the compute stream is at work that was queued before",
        seen="when save returned, all of that work was done: save waited for the device",
    )
    life.wait()
    again, loaded = run.resume(mode="pinned")
    run.expect_landing("commit.pinned", loaded, {4})
    run.expect_state("commit.pinned", again, 4, kinds=STATE)


@judges("commit.pinned")
def test_a_pinned_save_stages_into_page_locked_memory(run: Scenario) -> None:
    run.require_gpus(1)
    life = run.start(mode="pinned")
    life.train_to(2)
    found = life.worker.call("save_while_busy")
    run.expect(
        "commit.pinned",
        found["pinned_bytes"] >= found["state_bytes"] > 0,
        expected=f"the {found['state_bytes']} bytes of state on the device to be staged in page-locked memory",
        seen=f"{found['pinned_bytes']} bytes more of it than before",
    )


@judges("resume.rng", needs=("gpu",))
def test_the_random_stream_of_the_device_comes_back(run: Scenario, any_mode: str) -> None:
    run.require_gpus(1)
    life = run.start(mode=any_mode)
    life.commit_at(3)
    streams = [name for name in life.digest("rng") if name.startswith("rng/cuda")]
    run.expect("resume.rng", bool(streams), expected="a random stream on the device", seen=sorted(life.digest("rng")))
    again, _ = run.resume(mode=any_mode)
    run.expect_state("resume.rng", again, 3, kinds=["rng"])
