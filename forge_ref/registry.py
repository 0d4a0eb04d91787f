"""The strategies that a `DynamicCheckpointWindow` can name.

A strategy is a function `(window, step) -> bool`.  A name is registered once in
a process, so a configuration means the same wherever it is read.
"""

from collections.abc import Callable
from typing import Any

from forge_ref.arguments import check_text

Strategy = Callable[[Any, int], bool]
"""Asked with a `DynamicCheckpointWindow` and a step: whether to save there."""


class Registry:
    """Strategies by name."""

    def __init__(self) -> None:
        self._strategies: dict[str, Strategy] = {}

    def register_dyn_ckpt_strategy(self, name: str) -> Callable[[Strategy], Strategy]:
        """Return a decorator that registers a strategy; `ValueError` if the name is taken (schedule.registry).

        `TypeError` for a name that is not a string, as in a decorator without its parentheses.
        """
        check_text(name, "the name of a strategy")

        def register(strategy: Strategy) -> Strategy:
            if name in self._strategies:
                raise ValueError(f"strategy {name!r} is already registered; choose another name than {self._listed()}")
            self._strategies[name] = strategy
            return strategy

        return register

    def get_dyn_ckpt_strategy(self, name: str) -> Strategy:
        """Return the strategy of that name; `KeyError` lists the registered names (schedule.registry)."""
        try:
            return self._strategies[name]
        except KeyError:
            raise KeyError(f"unknown strategy {name!r}; registered: {self._listed()}") from None

    def list_dyn_ckpt_strategies(self) -> list[str]:
        """Return all names, in the order of registration."""
        return list(self._strategies)

    def _listed(self) -> str:
        return ", ".join(self._strategies) or "none"


registry = Registry()
"""The registry that every `DynamicCheckpointWindow` uses."""
