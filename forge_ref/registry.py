"""Strategies by name: what a window's `strategy` may be set to.

A strategy is a function `(window, step) -> bool`.  A name means one function
for the life of the process, so a configuration means the same wherever it is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forge_ref.config import DynamicCheckpointWindow

Strategy = Callable[["DynamicCheckpointWindow", int], bool]


class Registry:
    """Names and the strategies registered under them."""

    def __init__(self) -> None:
        self._strategies: dict[str, Strategy] = {}

    def register_dyn_ckpt_strategy(self, name: str) -> Callable[[Strategy], Strategy]:
        """A decorator that registers a strategy; `ValueError` if the name is taken (schedule.registry)."""

        def register(strategy: Strategy) -> Strategy:
            if name in self._strategies:
                raise ValueError(f"strategy {name!r} is already registered; taken names: {self._listed()}")
            self._strategies[name] = strategy
            return strategy

        return register

    def get_dyn_ckpt_strategy(self, name: str) -> Strategy:
        """The strategy of that name; `KeyError` lists those there are (schedule.registry)."""
        try:
            return self._strategies[name]
        except KeyError:
            raise KeyError(f"unknown strategy {name!r}; registered: {self._listed()}") from None

    def list_dyn_ckpt_strategies(self) -> list[str]:
        """All names, in the order of their registration."""
        return list(self._strategies)

    def _listed(self) -> str:
        return ", ".join(self._strategies) or "none"


registry = Registry()
"""The one that `DynamicCheckpointWindow` looks into."""
