# SIGTERM to everything in the unit (strace ignores it), SIGKILL when the grace, in seconds, is over. Word: the grace.
timeout "$2" systemctl stop mayfly-task 2>/dev/null && exit 0
systemctl kill --signal=KILL mayfly-task 2>/dev/null
exit 0
