# Start the process as the transient unit mayfly-task.service, once and never again; then become the attendant.
# Words: token, time-out and grace in seconds, memory in bytes, tasks, bytes of each stream to send.
# Variables: launch (the unit's command), record (what it runs when it is over), attend (the attendant's program).
# The first line written is "started", "refused" (this VM has had its process), "gone" (it had, before it restarted), or
# "failed" and why.
umask 077
run=/run/mayfly-task logs=/var/lib/mayfly-task
# A token is gone after a restart, the trace, which is made later, is not: see look.sh.
[ -e "$logs/trace" ] && ! [ -e "$run/token" ] && { echo gone; exit 0; }
mkdir -p "$run" "$logs" || exit
set -C
if echo "$2" 2>/dev/null >"$run/token"; then
    set +C
    printf '%s' "$launch" >"$run/launch"
    printf '%s' "$record" >"$run/record"
    # Pipes, for the process to write to /dev/stdout and /dev/stderr as well: a file of root's it could not open again,
    # and a file of its own it could cut. Their readers are outside of the unit, so no kill of it loses what was written.
    mkfifo -m 622 "$run/stdout" "$run/stderr" || exit
    for stream in stdout stderr; do
        {
            cat <"$run/$stream" >"$logs/$stream" || { : >"$run/$stream.cut"; cat <"$run/$stream"; }
            : >"$run/$stream.done"
        } </dev/null >/dev/null 2>&1 &
    done
    # Room that the process cannot take away: a full disk must not end the trace, which strace (-A) writes into it.
    : >"$logs/trace"
    fallocate --keep-size --length 64M "$logs/trace" 2>/dev/null
    # Whatever happens to the machine from here on, it will know that a process may have run in it. The whole file
    # system is written: a file alone would lose its name, for our images have no journal.
    sync -f "$logs"
    if ! why=$(systemd-run --quiet --collect --unit=mayfly-task --service-type=exec --working-directory=/task/out \
        -p StandardInput=null -p StandardOutput=null -p StandardError=null -p UMask=0022 -p IgnoreSIGPIPE=no \
        -p PrivateNetwork=yes -p NoNewPrivileges=yes -p PrivateTmp=yes -p ProtectSystem=strict -p ProtectProc=invisible \
        -p "ReadWritePaths=/task/out /task/tmp $run $logs" -p "InaccessiblePaths=-/run/dbus" -p LimitCORE=0 \
        -p CPUAccounting=yes -p MemoryAccounting=yes -p "MemoryMax=$5" -p MemorySwapMax=0 -p "TasksMax=$6" \
        -p OOMPolicy=stop -p "RuntimeMaxSec=$3" -p "TimeoutStopSec=$4" -p KillMode=control-group \
        -p "ExecStopPost=+/bin/sh $run/record" /bin/sh "$run/launch" 2>&1); then
        echo "failed $why"
        exit 0
    fi
else
    read -r owner <"$run/token"
    [ "$owner" = "$2" ] || { echo refused; exit 0; }
fi
echo started
exec python3 -IS -c "$attend" mayfly-attend "$2" 0 0 0 "$7"
