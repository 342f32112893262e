#!/bin/sh
# First program of the Linux guest: modules, then the disk as root.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/lib/modules/$module.ko" || echo "guest: cannot insert $module"; done </lib/modules/order
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    if [ "$tries" -gt 100 ]; then
        echo "guest: no disk /dev/vda"
        exec sh
    fi
    sleep 0.1
done
mount -t ext4 /dev/vda /disk || { echo "guest: cannot mount /dev/vda"; exec sh; }
mount --move /dev /disk/dev
umount /sys
umount /proc
exec switch_root /disk /sbin/init
