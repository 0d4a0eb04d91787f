"""Ignite's `Checkpoint` with its default `n_saved=1` deletes the only checkpoint before it writes the next one."""

import os
import signal
import sys
import tempfile
import traceback

try:
    import torch
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)


def train(folder: str) -> None:
    """Save after iterations 100 and 200; the process is killed at the rename that would complete the second save."""
    model = torch.nn.Linear(8, 1)
    trainer = Engine(lambda engine, batch: None)
    checkpoint = Checkpoint({"model": model, "trainer": trainer}, folder)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=100), checkpoint)

    @trainer.on(Events.ITERATION_COMPLETED(once=199))
    def die_at_the_next_rename() -> None:
        print(f"after iteration 199 the folder holds {sorted(os.listdir(folder))}", flush=True)
        os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)

    trainer.run(max_epochs=1, epoch_length=200)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            try:
                train(folder)
            except BaseException:
                traceback.print_exc()
            finally:  # an error of the child must not unwind what the parent has open: that would remove the folder
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            print("can't run: the process was to be killed in its second save, and was not")
            return 3
        left = sorted(os.listdir(folder))
    print(f"killed while it saved iteration 200; the folder holds {left}")
    checkpoints = [name for name in left if name.endswith(".pt")]
    print(f"checkpoints that a restart can load: {checkpoints or 'none'}")
    return 0 if checkpoints else 1


if __name__ == "__main__":
    sys.exit(main())
