"""A kill while two ranks save a step again with `dcp.save` leaves rows of both saves, which load without an error."""

import builtins
import io
import os
import signal
import sys
import tempfile
import traceback
import warnings

try:
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

warnings.simplefilter("ignore")


def save(rank: int, folder: str, generation: int, dies: bool) -> None:
    """Save a tensor of four rows, two for each rank; every element is the number of the save."""
    meeting = f"file://{folder}/meeting-{generation}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    written = dist.FileStore(f"{folder}/written-{generation}", 2)
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(torch.full((4, 2), float(generation)), mesh, [Shard(0)])
    if dies and rank == 0:
        _after_fsync(lambda: written.set("shard of rank 0", "on storage"))
    if dies and rank == 1:
        _before_writing(
            "__1_0.distcp", lambda: (written.wait(["shard of rank 0"]), os.kill(os.getpid(), signal.SIGKILL))
        )
    dcp.save({"weight": weight}, checkpoint_id=f"{folder}/step_100")


def _after_fsync(then):
    fsync = os.fsync
    os.fsync = lambda descriptor: (fsync(descriptor), then())


def _before_writing(name, then):
    plain = io.open

    def watched(path, mode="r", *arguments, **options):
        if "w" in mode and os.path.basename(path) == name:
            then()
        return plain(path, mode, *arguments, **options)

    io.open = builtins.open = watched


def ranks(folder: str, generation: int, dies: bool = False) -> list[int]:
    """Let both ranks save; return how they ended. If one is killed, so is the other one, as a lost node ends a job."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                save(rank, folder, generation, dies)
                os._exit(0)
            except BaseException:
                if not dies:  # else rank 0 may have noticed that it is alone, before it is killed as well
                    traceback.print_exc()
            finally:  # an error of a child must not unwind what the parent has open: that would remove the folder
                os._exit(1)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(children[1], 0)[1])]
    if ends[0] != 0:
        os.kill(children[0], signal.SIGKILL)
    return [os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]), *ends]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        if ranks(folder, 1) != [0, 0]:
            print("can't run: the first save failed")
            return 3
        print("save 1 of step 100 is complete: every element is 1")
        if ranks(folder, 2, dies=True)[1] != -signal.SIGKILL:
            print("can't run: rank 1 was to be killed in its second save, and was not")
            return 3
        print("rank 1 was killed in save 2 of the same step, in which every element is 2")
        state = {"weight": torch.zeros(4, 2)}
        try:
            dcp.load(state, checkpoint_id=f"{folder}/step_100")
        except BaseException as error:  # the errors of DCP are no subclass of Exception
            print(f"dcp.load raised {type(error).__name__}")
            return 0
    rows = [row[0].item() for row in state["weight"]]
    print(f"dcp.load raised no error; the rows are {rows}")
    return 1 if len(set(rows)) > 1 else 0


if __name__ == "__main__":
    sys.exit(main())
