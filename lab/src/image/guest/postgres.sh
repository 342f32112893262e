# PostgreSQL; setting: fsync (on or off; default on).
postgres=$(echo /usr/lib/postgresql/*/bin/postgres)
data=/var/lib/postgresql

start() {
    mkdir -p /dev/shm
    mount -t tmpfs tmpfs /dev/shm
    chmod 1777 /dev/shm
    mkdir -p /run/postgresql
    chown postgres /run/postgresql
    # The process ids of an earlier boot say nothing about this one.
    rm -f $data/postmaster.pid
    su -s /bin/sh postgres -c "exec $postgres -D $data -c fsync=${kemari_fsync:-on}" &
    until grep -q '^ready' $data/postmaster.pid 2>/dev/null; do sleep 0.1; done
}
