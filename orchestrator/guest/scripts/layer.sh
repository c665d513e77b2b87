# Mount the layer that was staged, read-only, where the process finds it. A mount of the machine's shows up in the unit
# that waits for the process, for systemd makes that a slave of it: systemd.exec(5), MountFlags=. May be repeated.
#
# Words: the file, the folder.
file=$2 folder=$3
while read -r _ where _; do
    [ "$where" != "$folder" ] || exit 0
done </proc/mounts
[ -d "$folder" ] || mkdir -m 0755 "$folder"
modprobe -aq loop squashfs
mount -t squashfs -o ro,nosuid,nodev,loop "$file" "$folder"
