"""A checkpoint manager on PyTorch: saves, keeps and resumes a training run, and survives being killed at any point.

To read it: `layout` (what stands in the folder), `publish` and `retire` (how it
gets there and leaves), `resolve` (where a resume lands), `storage`, `pieces` and
`weights` (shards and the live objects), `ranks` (how several processes come to
one outcome), then `manager`, which puts them in order.
"""

from forge_ref.async_save import AsyncCheckpointer
from forge_ref.config import AsyncCheckpointMode, CheckpointConfig, DynamicCheckpointWindow
from forge_ref.errors import DamagedError, RanksLostError, SaveError
from forge_ref.freeze import FreezeSpec, FreezeStage, canonical_freeze_meta, effective_freeze
from forge_ref.manager import CheckpointManager
from forge_ref.registry import registry
from forge_ref.state import build_train_state, get_rng_state, restore_train_state, set_rng_state

__all__ = [
    "AsyncCheckpointMode",
    "AsyncCheckpointer",
    "CheckpointConfig",
    "CheckpointManager",
    "DamagedError",
    "DynamicCheckpointWindow",
    "FreezeSpec",
    "FreezeStage",
    "RanksLostError",
    "SaveError",
    "build_train_state",
    "canonical_freeze_meta",
    "effective_freeze",
    "get_rng_state",
    "registry",
    "restore_train_state",
    "set_rng_state",
]
