# Run by systemd when nothing of the unit runs any more, and its cgroup is still there: how it ended, and what it used.
# The last line says that the record is whole.
run=/run/mayfly-task group=/sys/fs/cgroup/system.slice/mayfly-task.service
{
    echo "result=$SERVICE_RESULT"
    echo "code=$EXIT_CODE"
    echo "status=$EXIT_STATUS"
    [ -e "$run/launched" ] && echo launched=yes
    while read -r line; do
        echo "$line"
    done <"$run/began"
    while read -r key value; do
        [ "$key" = oom_kill ] && echo "oom_kill=$value"
    done <"$group/memory.events"
    read -r peak <"$group/memory.peak" && echo "memory_peak=$peak"
    while read -r key value; do
        [ "$key" = usage_usec ] && echo "cpu_usec=$value"
    done <"$group/cpu.stat"
    # its time was over; or it had ended by itself, just before
    [ -e "$run/expired" ] && echo expired=yes && systemctl show mayfly-task -p ExecMainExitTimestampMonotonic
    echo end
} >"$run/exit" 2>/dev/null
