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
    # what was written and has yet to go to the disk counts, too: to wait for the disk could take long
    read=0 written=0
    while read -r key value; do
        case $key in
        file_dirty | file_writeback) written=$((written + value)) ;;
        esac
    done <"$group/memory.stat"
    while read -r line; do
        for word in $line; do
            case $word in
            rbytes=*) read=$((read + ${word#rbytes=})) ;;
            wbytes=*) written=$((written + ${word#wbytes=})) ;;
            esac
        done
    done <"$group/io.stat" && echo "io_read=$read" && echo "io_written=$written"
    # it ended badly: for want of room? What an unprivileged user may still write, of how much, in blocks of so many bytes
    if [ "$EXIT_CODE$EXIT_STATUS" != exited0 ]; then
        set -- out scratch disk
        stat -f -c '%a %b %S' /task/out /task/tmp / | while read -r line; do
            echo "$1_room=$line"
            shift
        done
    fi
    # its time was over; or it had ended by itself, just before
    [ -e "$run/expired" ] && echo expired=yes && systemctl show mayfly-task -p ExecMainExitTimestampMonotonic
    echo end
} >"$run/exit" 2>/dev/null
