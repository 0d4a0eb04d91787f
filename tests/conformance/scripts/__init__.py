"""Judges a training script by its restarts: no adapter, and no knowledge of what saves its checkpoints."""
