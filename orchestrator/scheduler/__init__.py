"""The upkeep: one chore a file, each `run_once()`: load, decide, apply."""
