# What became of a launch in this machine, in one word. Word: its token.
# A start writes the token, which a restart takes away, before the trace, which stays: so the trace is looked for first.
run=/run/mayfly-task
[ -e /var/lib/mayfly-task/trace ] && before=yes
if ! [ -e "$run/token" ]; then
    [ "$before" ] && echo gone || echo never
    exit 0
fi
read -r owner <"$run/token"
if [ "$owner" != "$2" ]; then
    echo other
elif [ -e "$run/exit" ]; then
    echo ended
else
    echo running
fi
