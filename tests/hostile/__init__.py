"""The hostile guest: attacks that a machine can try on whoever drives it, run, and told as a table.

`python -m tests.hostile --write docs/reference/hostile-guest.md` runs them all and writes what happened. `wire.py` has
the attacks of a machine that only speaks (a misbehaving SSH server, `far.py`); `machines.py` those of a real one.
"""
