#!/bin/sh
# What is no command is a script or an option for node.
set -e
if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ]; then
	set -- node "$@"
fi
exec "$@"
