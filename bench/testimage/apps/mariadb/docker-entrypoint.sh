#!/bin/bash
# Makes the system tables if there are none, sets the root password and becomes the server.
set -eo pipefail

if [ "${1:0:1}" = - ]; then
	set -- mariadbd "$@"
fi
data=/var/lib/mysql
if [ "$1" = mariadbd ] && [ "$(id -u)" = 0 ]; then
	mkdir -p "$data" /run/mysqld
	chown -R mysql:mysql "$data" /run/mysqld
	exec setpriv --reuid=mysql --regid=mysql --clear-groups -- "$0" "$@"
fi
if [ "$1" = mariadbd ] && [ ! -d "$data/mysql" ]; then
	if [ -z "$MARIADB_ROOT_PASSWORD" ]; then
		echo 'Database is uninitialized and password option is not specified' >&2
		exit 1
	fi
	echo 'Initializing database files'
	mariadb-install-db --datadir="$data" --auth-root-authentication-method=normal --skip-test-db >/dev/null
	mariadbd --datadir="$data" --bootstrap <<-SQL
		FLUSH PRIVILEGES;
		ALTER USER root@localhost IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';
		CREATE USER root@'%' IDENTIFIED BY '$MARIADB_ROOT_PASSWORD';
		GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;
		CREATE DATABASE IF NOT EXISTS \`${MARIADB_DATABASE:-app}\`;
	SQL
	echo 'MariaDB init process done. Ready for start up.'
fi
exec "$@"
