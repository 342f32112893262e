#!/bin/sh
# First program of an emulated host: modules, networks, then the agent. Settings come from the kernel command line as
# lab.NAME=VALUE: control, replication (addresses with prefix lengths), bridge_mac, taps.
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/lib/modules/$module.ko" || echo "lab: cannot insert $module"; done </lib/modules/order
for word in $(cat /proc/cmdline); do
    case $word in lab.*=*) eval "lab_${word#lab.}" ;; esac
done
for scope in all default; do echo 1 >/proc/sys/net/ipv6/conf/$scope/disable_ipv6; done
# Cards are told apart by the fifth byte of their addresses.
for card in /sys/class/net/*; do
    case $(cat "$card/address") in
    52:54:00:4b:01:*) ip link set "${card##*/}" name control ;;
    52:54:00:4b:02:*) ip link set "${card##*/}" name replication ;;
    52:54:00:4b:03:*) ip link set "${card##*/}" name guests ;;
    esac
done
ip link set lo up
ip addr add "$lab_control" dev control
ip addr add "$lab_replication" dev replication
ip link set control up
ip link set replication up
ip link set guests up
brctl addbr br0
brctl setfd br0 0
ip link set br0 address "$lab_bridge_mac"
echo 0 >/sys/class/net/br0/bridge/multicast_snooping
brctl addif br0 guests
ip link set br0 up
tap=0
while [ "$tap" -lt "$lab_taps" ]; do
    tunctl -t "tap$tap" >/dev/null
    brctl addif br0 "tap$tap"
    tap=$((tap + 1))
done
ulimit -l unlimited
echo "lab: host ready"
lab-agent
echo "lab: the agent ended"
poweroff -f
