#!/bin/sh
# lab-fence HOST: cuts the power of another host (its number from 0), and says so by its exit status.
[ "$(echo "off $1" | nc -w 30 10.78.0.1 7099)" = "off" ]
