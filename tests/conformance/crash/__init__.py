"""Finds every disk that the death of a manager can leave, and lets the manager resume from each."""
