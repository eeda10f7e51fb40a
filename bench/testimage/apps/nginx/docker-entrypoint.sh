#!/bin/sh
# Runs what is in /docker-entrypoint.d, then the command.
set -e
if [ "$1" = nginx ]; then
	for f in /docker-entrypoint.d/*.sh; do
		if [ -x "$f" ]; then
			echo "$0: running $f"
			"$f"
		fi
	done
fi
exec "$@"
