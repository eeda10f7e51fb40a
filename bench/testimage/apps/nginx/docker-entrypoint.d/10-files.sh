#!/bin/sh
# Makes the files that clients load.
set -e
cd /var/www/html
head -c 1024 /dev/zero | tr '\0' k >1k
head -c 1048576 /dev/zero | tr '\0' m >1m
