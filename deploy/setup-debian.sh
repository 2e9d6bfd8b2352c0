#!/usr/bin/env bash
# Installs what Millrace needs to be built, run and tested on Debian 12, and nothing that is there already.
#
#   deploy/setup-debian.sh [--yes] [--clients]
#
#   --yes       do not ask (also when CI=true)
#   --clients   also what `make test-clients` needs: a JDK, Maven, Python and npm; Go has to be there
#
# Packages come from Debian only, as root or through sudo. A PostgreSQL that it installs gets no cluster: nothing is
# started, no port is opened.
set -euo pipefail

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; }

yes=${CI:+yes}
clients=
for arg in "$@"; do
  case $arg in
    --yes) yes=yes ;;
    --clients) clients=yes ;;
    -h | --help) usage; exit 0 ;;
    *) echo "setup-debian: unknown option '$arg'" >&2; usage >&2; exit 2 ;;
  esac
done

fail() { echo "setup-debian: $*" >&2; exit 1; }

# want PACKAGE REASON TEST...: names the package where the test fails.
want() {
  local package=$1 reason=$2
  shift 2
  "$@" >/dev/null 2>&1 || printf '  %-22s %s\n' "$package" "$reason"
}
has() { local name; for name in "$@"; do command -v "$name" || return 1; done; }

missing=$(
  want build-essential "compiles the bundled SQLite and, for tests, librdkafka" has cc c++ make
  want zlib1g-dev "librdkafka, the Kafka client of the tests, links it" test -e /usr/include/zlib.h
  want postgresql-15 "the source of the demo and of the tests" test -x /usr/lib/postgresql/15/bin/initdb
  want kcat "a Kafka client for the command line; the demo shows changes with it" has kcat
  if [ -n "$clients" ]; then
    want default-jdk-headless "compiles and runs the Java client's tests" has java javac
    want maven "fetches the Java client" has mvn
    want python3-venv "keeps the Python clients apart from the system's Python" python3 -c 'import ensurepip, venv'
    want npm "fetches the Node clients, and the Node that they run on" has npm
  fi
)

if [ -n "$missing" ]; then
  [ -e /etc/debian_version ] || fail "not a Debian system; install by hand what these packages bring:"$'\n'"$missing"
  echo "Missing on this machine, to be installed from Debian:"
  echo "$missing"

  as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "neither root nor sudo here; install the packages above as root, then run this again"
    as_root=(sudo)
  fi
  if [ -z "$yes" ]; then
    [ -t 0 ] || fail "no terminal to ask on; run it with --yes"
    read -rp "Install them${as_root[*]:+ (with sudo)}? [Y/n] " answer
    case $answer in '' | [Yy]*) ;; *) fail "nothing installed" ;; esac
  fi

  # Debian's PostgreSQL makes and starts a cluster when it is installed, unless told otherwise at that moment.
  drop_in=/etc/postgresql-common/createcluster.d/millrace-setup.conf
  if [[ $missing == *postgresql-15* ]]; then
    trap '"${as_root[@]}" rm -f "$drop_in"' EXIT
    "${as_root[@]}" mkdir -p "${drop_in%/*}"
    echo "create_main_cluster = false" | "${as_root[@]}" tee "$drop_in" >/dev/null
  fi

  "${as_root[@]}" apt-get update -q || echo "setup-debian: apt-get update failed; trying with the lists at hand" >&2
  read -ra packages <<<"$(awk '{printf "%s ", $1}' <<<"$missing")"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" </dev/null
fi

# Rust is the user's own business: rustup installs it for one account, and Debian's is too old.
if ! command -v cargo >/dev/null; then
  fail "no Rust here: install it with rustup as https://rustup.rs says (1.89 or newer), open a new shell and run this again"
fi
# Likewise Go.
if [ -n "$clients" ] && ! command -v go >/dev/null; then
  fail "no Go here: install it as https://go.dev/doc/install says (1.26 or newer), open a new shell and run this again"
fi
