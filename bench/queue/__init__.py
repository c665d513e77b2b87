"""What the queue itself costs: enqueue, claim, finish, and how soon a waiting runner takes up a task.

Mayfly on SQLite and PostgreSQL; procrastinate and PgQueuer with the same jobs on the same PostgreSQL in the same run.
`LIMITS` in `report.py` says how far the figures carry.
"""
