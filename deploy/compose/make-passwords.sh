#!/bin/bash
# Makes the passwords that are not there yet: postgres and shop for the server, and millrace for Millrace (user 65532),
# which the server's first start reads too.
set -euo pipefail
umask 077

# make FILE OWNER MODE
make() {
  [ ! -s "$1" ] || return 0
  head -c 32 /dev/urandom | base64 --wrap=0 >"$1.new"
  chmod "$3" "$1.new"
  chown "$2" "$1.new"
  mv "$1.new" "$1"
}

make /run/passwords/postgres/postgres postgres:postgres 0400
make /run/passwords/postgres/shop postgres:postgres 0400
make /run/passwords/millrace/millrace 65532:postgres 0440
