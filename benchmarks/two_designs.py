"""Draws one run under both designs: what stands in the folder after each step at which something is saved.

    python benchmarks/two_designs.py                          print the drawing
    python benchmarks/two_designs.py --write PAGE             put it into a page, between its fences
    python benchmarks/two_designs.py --check PAGE             exit with 1 if the page shows another one

Both are real runs of forge_ref, in folders of their own.
"""

import argparse
import json
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from forge_ref import (
    CheckpointConfig,
    CheckpointerCallback,
    CheckpointManager,
    DynamicCheckpointWindow,
    TrainingRun,
)

LAST, EVERY, FAR = 24, 2, 8
_FENCES = re.compile(r"(?<=```text\n).*?(?=```)", re.DOTALL)


def parts() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model and its optimizer, as small as they can be."""
    model = torch.nn.Linear(1, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def first_design(folder: Path) -> Iterator[tuple[int, dict[int, str]]]:
    """After each save of a run with an interval, a window and a limit, what stands."""
    window = DynamicCheckpointWindow(0, 8)
    config = CheckpointConfig(dir=folder, interval=EVERY, keep_last_n=2, dyn_ckpt_window=window)
    manager = CheckpointManager(config, *parts())
    for step in range(LAST + 1):
        if config.should_save(step):
            manager.save(step)
            yield (
                step,
                {int(one.name[5:]): _kind(one / "metadata.json", "milestone", "m") for one in _of(folder, "step_")},
            )


def second_design(folder: Path) -> Iterator[tuple[int, dict[int, str]]]:
    """After each save of a run with hooks, what stands when the next hook has removed what was replaced."""
    run = TrainingRun(folder, *parts())
    saver = CheckpointerCallback(save_interval=FAR, ephemeral_save_interval=EVERY, save_async=False)
    saver.trainer = run
    run.run_bookkeeping_op = lambda function, *arguments, op_name: function(*arguments)  # removes at once, to be drawn
    saver.pre_train()
    for step in range(LAST + 1):
        run.global_step = step
        if step:
            saver.post_train_batch()
        if step % EVERY == 0:
            saver.post_train_batch()  # as the hook of the next batch does
            yield (
                step,
                {int(one.name[4:]): _kind(one / ".metadata.json", "ephemeral", "e") for one in _of(folder, "step")},
            )


def _of(folder: Path, prefix: str) -> list[Path]:
    return [one for one in folder.iterdir() if re.fullmatch(rf"{prefix}\d+", one.name)]


def _kind(file: Path, key: str, sign: str) -> str:
    return sign if json.loads(file.read_text())[key] else "#"


def drawing() -> str:
    """Both runs side by side, a line for each step at which one of them saves, a column for each step."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        left, right = dict(first_design(Path(one))), dict(second_design(Path(other)))
    columns = sorted({step for stands in (*left.values(), *right.values()) for step in stands})
    head = " ".join(f"{step:2}" for step in columns)
    lines = [f"step   {'first design':{len(head)}}   second design", f"       {head}   {head}"]
    for step in sorted({*left, *right}):
        strips = [
            _strip(stands, columns) if stands else " " * len(head) for stands in (left.get(step), right.get(step))
        ]
        lines.append(f"{step:4}   {strips[0]}   {strips[1]}".rstrip())
    return "\n".join(lines) + "\n"


def _strip(stands: dict[int, str], columns: list[int]) -> str:
    return " ".join(f"{stands.get(column, '.'):>2}" for column in columns)


def main() -> int:
    """The command; its result is the exit status."""
    parser = argparse.ArgumentParser(description="Draw one run under both designs.")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--write", type=Path, metavar="PAGE", help="put the drawing into this page")
    choice.add_argument("--check", type=Path, metavar="PAGE", help="exit with 1 if this page shows another one")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    drawn = drawing()
    page = options.write or options.check
    if page is None:
        print(drawn, end="")
        return 0
    text = page.read_text(encoding="utf-8")
    renewed = _FENCES.sub(lambda _: drawn, text, count=1)
    if options.write:
        page.write_text(renewed, encoding="utf-8")
    elif renewed != text:
        print(f"{page} shows another drawing; renew it: python {sys.argv[0]} --write {page}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
