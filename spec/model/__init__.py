"""A whole checkpoint manager as one table of what it does and what may happen to it, and a search of all its states.

- `table`, `ephemeral_table`: the protocols of the two designs, row by row, and the scopes that are searched.
- `invariants`, `ephemeral_invariants`: what has to hold in every state, clause by clause.
- `variants`, `ephemeral_variants`: managers that are wrong in one row, and the clause that each of them breaks.
- `design`, `designs`: these three together, as they are searched.
- `machine`: rows, invariants and states in a form that is fast to search.
- `explore`: the search, and the command `python -m forge_spec.model.explore`.
- `program`: a trace of the first design as the calls and faults that bring it about on a real manager.
- `paths`: whether what was observed of a real run is possible in the model of the first design.
"""
