"""A checkpoint manager on PyTorch: saves, keeps and resumes a training run, and survives being killed at any point.

Where to begin: `layout` (the names in the folder), `manifest` and `marker` (the
checksums that bind files to one save), `files` and `trust` (what may be read),
`publish` and `retire` (how a checkpoint appears and is deleted), `writer` (which
process may save), `resolve` and `source` (which checkpoint a resume lands on),
`storage`, `pieces`, `weights` and `optimizers` (shards and the live objects),
`ranks` and `channel` (how several processes come to one outcome), then `saving`
and `resuming`, which do all this in order, and `manager`, the API.  The second
design uses the same parts: `ephemeral` decides and `removals` removes;
`ephemeral_saver` has what differs in saving and resuming, `ephemeral_folder` the
names, and `ephemeral_run` is the run.
"""

from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import AsyncCheckpointMode, CheckpointConfig, DynamicCheckpointWindow
from forge_ref.ephemeral import CheckpointerCallback, CheckpointRemovalStrategy
from forge_ref.ephemeral_run import TrainingRun
from forge_ref.errors import DamagedError, FolderInUseError, RanksLostError, SaveError
from forge_ref.freeze import FreezeSpec, FreezeStage, canonical_freeze_meta, effective_freeze
from forge_ref.manager import CheckpointManager
from forge_ref.registry import registry
from forge_ref.state import build_train_state, get_rng_state, restore_train_state, set_rng_state

__all__ = [
    "AsyncCheckpointMode",
    "AsyncCheckpointer",
    "CheckpointConfig",
    "CheckpointManager",
    "CheckpointRemovalStrategy",
    "CheckpointerCallback",
    "DamagedError",
    "DynamicCheckpointWindow",
    "FolderInUseError",
    "FreezeSpec",
    "FreezeStage",
    "RanksLostError",
    "SaveError",
    "TrainingRun",
    "build_train_state",
    "canonical_freeze_meta",
    "effective_freeze",
    "get_rng_state",
    "registry",
    "restore_train_state",
    "set_rng_state",
]
