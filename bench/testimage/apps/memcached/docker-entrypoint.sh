#!/bin/sh
# Options alone are memcached's.
set -e
if [ "${1#-}" != "$1" ]; then
	set -- memcached "$@"
fi
exec "$@"
