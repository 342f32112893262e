# Redis; setting: appendfsync (Redis's word; default always).
start() {
    redis-server /etc/redis.conf --appendfsync "${kemari_appendfsync:-always}" &
    until [ "$(redis-cli ping 2>/dev/null)" = PONG ]; do sleep 0.1; done
}
