#!/bin/sh
# First program of the Linux guest: modules, then the disk as root.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/lib/modules/$module.ko" || echo "guest: cannot insert $module"; done </lib/modules/order
root=/dev/vda
for word in $(cat /proc/cmdline); do
    case $word in kemari.root=*) root=${word#kemari.root=} ;; esac
done
tries=0
until [ -b "$root" ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "guest: no disk $root"
        exec sh
    fi
    sleep 0.1
done
mount -t ext4 "$root" /disk || { echo "guest: cannot mount $root"; exec sh; }
mount --move /dev /disk/dev
umount /sys
umount /proc
exec switch_root /disk /sbin/init
