"""What a disk holds in the words of a layout: which checkpoints are complete, and which one the pointer names."""

import re
from dataclasses import dataclass

from forge_conformance.adapter import Layout
from forge_conformance.disks.recording import Recorded
from forge_conformance.watch.trace import Disk


@dataclass(frozen=True)
class Reader:
    """Looks at disks of one recording."""

    layout: Layout
    required: tuple[str, ...]
    """What every complete checkpoint has inside it; of each stage, where there are stages."""
    below: str = ""
    """Where on the disk the checkpoints stand: "" or a path that ends in a slash, and begins each of their names."""

    def complete(self, disk: Disk) -> frozenset[str]:
        """The names of complete checkpoints."""
        names = [path for path in disk.nodes if self.step(path) is not None]
        if not self.layout.is_dir:
            return frozenset(name for name in names if disk.nodes[name].content)
        return frozenset(name for name in names if all(self._holds(disk, f"{name}/{part}") for part in self.required))

    @staticmethod
    def _holds(disk: Disk, path: str) -> bool:
        node = disk.nodes.get(path)
        return node is not None and bool(node.content)

    def pointer(self, disk: Disk) -> str | None:
        """The name that the pointer names, whether something stands there or not."""
        node = disk.nodes.get(f"{self.below}{self.layout.pointer}") if self.layout.pointer else None
        said = node.content.decode(errors="replace").strip().rstrip("/") if node else ""
        return f"{self.below}{said.rpartition('/')[2]}" if said else None

    def step(self, name: str | None) -> int | None:
        """The step of a checkpoint's name."""
        where, _, own = (name or "").rpartition("/")
        found = re.fullmatch(self.layout.checkpoint, own) if where == self.below.rstrip("/") else None
        return int(found["step"]) if found else None


def reader(recorded: Recorded, layout: Layout) -> Reader:
    """For the stages that this recording has, and the place of its checkpoints."""
    stages, below = recorded.shape.stages, f"{recorded.below}/" if recorded.below else ""
    if not stages:
        return Reader(layout, layout.required, below)
    shared = [name for name in layout.required if name not in layout.required_of_stage]
    own = [f"{layout.stage.format(stage=n)}/{name}" for n in range(stages) for name in layout.required_of_stage]
    return Reader(layout, (*shared, *own), below)
