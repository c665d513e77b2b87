"""How far one runner carries: a thousand machines at once, ten thousand tasks, on the local cloud without real
machines.

The guests are simulated: they answer over real SSH connections, in a process of their own. Everything runs on this
machine's CPUs: the runner, the cloud, the guests and the database.
"""
