# What became of a launch in this machine, in one word. Word: its token.
# The mark says that the unit was armed; it outlives a restart, and the rest does not. The token is written before the
# process is started, and at the end that it was launched.
run=/run/mayfly-task
if ! [ -s "$run/token" ]; then
    [ -e /var/lib/mayfly-task/mark ] && ! [ -e "$run" ] && echo gone || echo never
    exit 0
fi
read -r owner <"$run/token"
if [ "$owner" != "$2" ]; then
    echo other
elif [ -e "$run/exit" ]; then
    echo ended
elif [ -e "$run/launched" ]; then
    echo running
else
    echo never
fi
