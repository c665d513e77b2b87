# Mount the layer that was staged, read-only, where the process finds it. A mount of the machine's shows up in the unit
# that waits for the process, for systemd makes that a slave of it: systemd.exec(5), MountFlags=. Files of Debian packages
# are laid under those of the image, and that in the unit alone, so that nothing of root's ever meets them: it must be
# armed by now. May be repeated.
#
# Words: the file, the folder, the process of the unit.
file=$2 folder=$3 unit=$4

mounted() { # FOLDER in the mounts $1
    while read -r _ where _; do
        [ "$where" != "$2" ] || return 0
    done <"$1"
    return 1
}

set -e
[ -d "$folder" ] || mkdir -m 0755 "$folder"
if ! mounted /proc/mounts "$folder"; then
    modprobe -aq loop squashfs
    mount -t squashfs -o ro,nosuid,nodev,loop "$file" "$folder"
fi
[ -d "$folder/debian" ] || exit 0
modprobe -aq overlay
read -r pid <"$unit"
for top in usr etc; do
    under=$folder/debian/$top
    if [ -d "$under" ] && ! mounted "/proc/$pid/mounts" "/$top"; then
        nsenter --mount="/proc/$pid/ns/mnt" \
            mount -t overlay -o "ro,nosuid,nodev,lowerdir=/$top:$under" layer "/$top"
    fi
done
