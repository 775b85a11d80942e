"""Conflicts: which write wins, what waits for whom, and what became of it."""
