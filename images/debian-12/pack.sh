#!/bin/sh
# mmdebstrap's last customize hook: make the kernel, the initrd and the disk out of the root file system at $1.
#
# Leaves vmlinuz, initrd, disk.qcow2 and packages.txt in $1/mayfly-build. Its settings are in $1/mayfly-build/settings
# (shell assignments written by orchestrator/provisioning/rootfs.py). Runs as root, or as root of a user namespace
# (mmdebstrap's unshare mode), so it makes no device node and mounts nothing.
set -eu
root=$1
build=$root/mayfly-build
. "$build/settings" # disk_size, label, first_modules, fallback_modules

# Nothing of one machine goes into an image: each VM gets its own.
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/var/lib/dbus/machine-id
rm -f "$root"/etc/resolv.conf "$root"/etc/hostname
: > "$root/etc/machine-id"
: > "$root/etc/fstab"
sed -i '/Proxy/d' "$root/etc/apt/apt.conf.d/99mmdebstrap"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
find "$root/var/log" -type f -delete
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' > "$build/packages.txt"

# The kernel stays outside the disk, and so does what only makes initrds for it.
set -- "$root"/boot/vmlinuz-*
release=${1##*/vmlinuz-}
cp "$1" "$build/vmlinuz"
rm -rf "$root"/boot/* "$root"/vmlinuz* "$root"/initrd.img*

tree=$build/initrd.tree
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/sys" "$tree/root" "$tree/modules"
cp "$build/init" "$tree/init"
cp "$root/bin/busybox" "$tree/bin/busybox"
for applet in sh mount insmod cat sleep switch_root poweroff; do ln -s busybox "$tree/bin/$applet"; done
# modprobe's own order, so that the initrd needs no modprobe.
list_modules() {
    chroot "$root" modprobe --set-version "$release" --ignore-install --all --show-depends "$@" |
        while read -r kind path _; do
            [ "$kind" = insmod ] || continue
            [ -f "$tree/modules/${path##*/}" ] || cp "$root$path" "$tree/modules/"
            echo "/modules/${path##*/}"
        done
}
list_modules $first_modules > "$tree/modules/first"
list_modules $fallback_modules > "$tree/modules/fallback"
(cd "$tree" && find . | LC_ALL=C sort | cpio --quiet --create --format=newc --owner=0:0) > "$build/initrd"

# A copy of this one file system, without what is mounted in it (proc, sys, dev) and without the build folder.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
mkdir -p "$root/usr/share/mayfly"
echo $((disk_size / 512)) > "$root/usr/share/mayfly/disk-sectors"
tar --directory "$root" --one-file-system --xattrs --exclude=./mayfly-build --exclude='./dev/*' --create . |
    tar --directory "$copy" --xattrs --xattrs-include='*' --extract
find "$copy/tmp" "$copy/run" -mindepth 1 -delete
truncate --size "$disk_size" "$build/disk.raw"
# No journal: a VM's disk is never used again, and the one that becomes an image was unmounted. See docs/decisions/0008.
# Quotas, of users and of projects: they bound what a task writes. See docs/decisions/0019.
mkfs.ext4 -q -F -L "$label" -m 2 -i 16384 -O ^has_journal,^metadata_csum,quota,project \
    -E lazy_itable_init=0,nodiscard,quotatype=usrquota:prjquota -d "$copy" "$build/disk.raw"
# What mkfs copies it does not count for the quotas; 1: e2fsck has mended that.
e2fsck -fy "$build/disk.raw" >/dev/null 2>&1 || [ $? -eq 1 ]
qemu-img convert -O qcow2 "$build/disk.raw" "$build/disk.qcow2"
rm -rf "$build/disk.raw" "$tree"
