#!/bin/sh
# lab-nfs DIRECTORY: mounts what the NFS server outside serves, if that was not done. A server that is away is waited
# for without end (hard), as it is where nobody asks for anything else.
grep -q " $1 " /proc/mounts && exit 0
while read -r module; do
    [ -d "/sys/module/$module" ] || insmod "/lib/modules/$module.ko" || exit 1
done </lib/modules/nfs
mkdir -p "$1"
exec mount -t nfs4 -o addr=10.78.0.1,vers=4.2,proto=tcp,hard 10.78.0.1:/kemari "$1"
