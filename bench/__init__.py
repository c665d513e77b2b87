"""Measurements, each beside its floor in the same run. `python -m bench` prints them; nothing here is asserted."""
