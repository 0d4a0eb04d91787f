"""forge-conformance: a suite that judges any training-checkpoint manager.

Two kinds of process meet here, and the packages are cut along that line:

`worker/` and `adapter.py` run where the manager runs, in its Python, with
nothing but the standard library and torch; they can be loaded from these
files alone, without installing anything there.

Everything else runs in the process of the command, or of pytest, and never
imports torch: it starts workers, sends them commands as lines of JSON
(`PROTOCOL.md`), kills them, looks at the folder they leave, and compares it
with `forge_spec`.

This module imports nothing, so that both sides can import it.
"""

__version__ = "0.1.0"
