#!/bin/sh
# The Linux guest's init: network and service. Settings come from the kernel command line as kemari.NAME=VALUE:
# ip (address with prefix length), service=off, and those that /etc/service knows.
export PATH=/bin:/sbin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
chmod 1777 /tmp
kemari_service=on
for word in $(cat /proc/cmdline); do
    case $word in kemari.*=*) eval "kemari_${word#kemari.}" ;; esac
done
hostname guest
echo 1 >/proc/sys/vm/overcommit_memory
ip link set lo up
if [ -n "$kemari_ip" ] && [ -e /sys/class/net/eth0 ]; then
    ip addr add "$kemari_ip" dev eth0
    ip link set eth0 up
    # The guests' network of the lab: clients behind a router are reached by its first address.
    ip route add default via "${kemari_ip%.*}.1"
fi
# Defines start, which returns when the service answers.
. /etc/service
if [ "$kemari_service" = on ]; then start; fi
echo "guest ready"
while true; do
    setsid cttyhack sh
    # Without a console the shell ends at once.
    sleep 1
done
