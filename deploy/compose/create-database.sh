#!/bin/bash
# The database `shop`, its owner `shop`, and `millrace`, which captures it: a member of the owner, because only a table's
# owner can publish it. The server's image runs this once, when it has made an empty cluster.
set -euo pipefail

# psql reads the files itself: what is in its arguments can be seen by others.
psql --no-psqlrc --set=ON_ERROR_STOP=1 --username=postgres <<'SQL'
\set shop `cat /run/passwords/postgres/shop`
\set millrace `cat /run/passwords/millrace/millrace`
CREATE ROLE shop LOGIN PASSWORD :'shop';
CREATE ROLE millrace LOGIN REPLICATION IN ROLE shop PASSWORD :'millrace';
CREATE DATABASE shop OWNER shop;
SQL
