"""The two designs of a checkpoint manager that are searched.

In the first one the caller saves, and a pointer names the checkpoint to resume from. In the second one hooks of the
training loop save, and the highest complete step is the one to resume from.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from forge_spec.model import (
    ephemeral_invariants,
    ephemeral_table,
    ephemeral_variants,
    invariants,
    table,
    variants,
)
from forge_spec.model.design import Design, Variant

FIRST = Design(
    "first",
    "",
    table.TABLE,
    invariants.INVARIANTS,
    {"full": table.FULL, "small": table.SMALL},
    variants.VARIANTS,
    table.start,
    table.constants,
    table.ranges,
    table.is_idle,
)
SECOND = Design(
    "second",
    "ephemeral_",
    ephemeral_table.TABLE,
    ephemeral_invariants.INVARIANTS,
    {"full": ephemeral_table.FULL, "small": ephemeral_table.SMALL},
    ephemeral_variants.VARIANTS,
    ephemeral_table.start,
    ephemeral_table.constants,
    ephemeral_table.ranges,
    ephemeral_table.is_idle,
)
DESIGNS: Mapping[str, Design[Any]] = MappingProxyType({design.name: design for design in (FIRST, SECOND)})
BY_NAME: Mapping[str, tuple[Design[Any], Variant]] = MappingProxyType(
    {variant.name: (design, variant) for design in DESIGNS.values() for variant in design.variants}
)
"""Every variant under its name, with its design."""
