# What this machine is, as lines of key=value. Only four programs are started: each costs hundredths of a second.
for program in strace python3 tar systemd-run sha256sum xargs find mkfifo; do
    command -v "$program" >/dev/null && echo "program=$program"
done
[ -d /run/systemd/system ] && [ -S /run/systemd/private ] && echo systemd=yes
[ -e /sys/fs/cgroup/cgroup.controllers ] && echo cgroup2=yes
while IFS=: read -r name _ uid gid _; do
    [ "$name" = task ] && echo "user=$uid:$gid"
done </etc/passwd
while read -r key value _; do
    [ "$key" = MemTotal: ] && echo "memory_kib=$value"
done </proc/meminfo
read -r uptime _ </proc/uptime
echo "uptime=$uptime"
read -r boot </proc/sys/kernel/random/boot_id
echo "boot=$boot"
[ -e /run/mayfly-task ] && echo used=yes
echo "kernel=$(uname -r)"
echo "clock=$(date +%s.%N)"
stat -c 'directory=%n:%u:%a' /task/in /task/out /task/tmp 2>/dev/null
stat -f -c 'disk=%a:%S' /task 2>/dev/null
exit 0
