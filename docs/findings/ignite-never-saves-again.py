"""After a kill in a save, a run that resumes with Ignite's `include_self=True` fails at its first save, each time."""

import logging
import os
import signal
import sys
import tempfile
import traceback

try:
    import torch
    from ignite.engine import Engine, Events
    from ignite.handlers import Checkpoint, DiskSaver
except ImportError as missing:
    print(f"can't run: {missing}")
    sys.exit(3)

logging.getLogger("ignite").setLevel(logging.CRITICAL)  # the error is printed below


def train(folder: str, dies: bool = False) -> None:
    """Resume from the newest checkpoint, and go on for 300 iterations with a save each 100."""
    model = torch.nn.Linear(8, 1)
    trainer = Engine(lambda engine, batch: None)
    to_save = {"model": model, "trainer": trainer}
    checkpoint = Checkpoint(dict(to_save), DiskSaver(folder, require_empty=False), n_saved=2, include_self=True)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=100), checkpoint)
    found = checkpoints(folder)
    if found:
        Checkpoint.load_objects({**to_save, "checkpointer": checkpoint}, os.path.join(folder, found[-1]))
        print(f"resumed from {found[-1]}", flush=True)

    @trainer.on(Events.ITERATION_COMPLETED(once=299))
    def maybe_die_at_the_next_rename() -> None:
        if dies:
            os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)

    try:
        trainer.run(max_epochs=10, epoch_length=300)
    except FileNotFoundError as error:
        missing = os.path.basename(error.filename)
        print(f"the save after iteration {trainer.state.iteration} raised FileNotFoundError for {missing}", flush=True)
        os._exit(2)


def checkpoints(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.endswith(".pt"))


def process(folder: str, dies: bool = False) -> int:
    """Train in a process of its own; return what `os.waitstatus_to_exitcode` makes of its end."""
    child = os.fork()
    if child == 0:
        try:
            train(folder, dies)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:  # an error of the child must not unwind what the parent has open: that would remove the folder
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        if process(folder, dies=True) != -signal.SIGKILL:
            print("can't run: the process was to be killed in its third save, and was not")
            return 3
        print(f"killed while it saved iteration 300; complete checkpoints: {checkpoints(folder)}", flush=True)
        ends = [process(folder) for _ in range(3)]
        print(f"complete checkpoints after three restarts: {checkpoints(folder)}")
    return 1 if all(end == 2 for end in ends) else 0


if __name__ == "__main__":
    sys.exit(main())
