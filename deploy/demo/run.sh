#!/usr/bin/env bash
# Shows Millrace at work; `make run` calls it.
#
#   SOURCE=postgres://…   follow this database, and start neither PostgreSQL nor a workload
#   TASK=name             name of task and topic (default: the database's)
#   PARTITIONS=n          partitions of the topic when it is made (default 1)
#   DATA_DIR=dir          where the log is kept (default with SOURCE ./millrace-data, otherwise a temporary place)
#   DEMO_SECONDS=n        end by itself after n seconds; fails if no change was seen
#
# Everything that it starts is its own child, asked by pid to stop when the script ends, in the order in which data
# flows. Each child sits in a session of its own, so that Ctrl-C reaches only this script, and is told by the kernel to
# stop should the script itself be killed.
set -euo pipefail
cd "$(dirname "$0")/../.."

millrace=${MILLRACE:-target/release/millrace}
work=$(mktemp -d /tmp/millrace-demo.XXXXXX)
chmod 711 "$work"
as_postgres=()
workload_pid='' consumer_pid='' millrace_pid='' postgres_pid=''

say() { printf '\n\e[1m%s\e[0m\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }

# stop SIGNAL PID: ends a child and waits for it.
stop() {
  [ -n "$2" ] || return 0
  kill -s "$1" "$2" 2>/dev/null || true
  wait "$2" 2>/dev/null || true
}
finish() {
  local status=$?
  trap '' INT TERM HUP
  echo
  stop TERM "$workload_pid"
  stop TERM "$consumer_pid"
  stop TERM "$millrace_pid"
  stop QUIT "$postgres_pid" # at once: its files go anyway
  rm -rf "$work"
  if [ -n "${SOURCE:-}" ] && [ -n "${was_ready:-}" ]; then
    cat <<END
Your database keeps its WAL for slot millrace_$task until \`make run\` goes on from $data_dir, or you drop it:
  SELECT pg_drop_replication_slot('millrace_$task');
  DROP PUBLICATION IF EXISTS millrace_$task, millrace_${task}_insert_only;
END
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# listening PORT: does anybody answer there?
listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
# free_port PREFERRED: that port, or the next that is free.
free_port() {
  local port=$1
  while listening "$port"; do port=$((port + 1)); done
  echo "$port"
}
# until_true SECONDS PID COMMAND...: waits until the command succeeds; fails when the process has gone or time is up.
until_true() {
  local deadline=$((SECONDS + $1)) pid=$2
  shift 2
  until "$@"; do
    kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.2
  done
}
ready() {
  local status
  exec 3<>"/dev/tcp/127.0.0.1/$http_port" || return 1
  printf 'GET /health/ready HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nConnection: close\r\n\r\n' "$http_port" >&3
  read -r _ status _ <&3 || true
  cat <&3 >/dev/null
  exec 3>&-
  [ "${status:-}" = 200 ]
} 2>/dev/null

start_postgres() {
  local bin=/usr/lib/postgresql/15/bin
  [ -x "$bin/initdb" ] || fail "no PostgreSQL 15 in $bin; run deploy/setup-debian.sh"
  # Loopback is open to every account of this machine, so a password it is.
  PGPASSWORD=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  export PGPASSWORD
  mkdir -m 700 "$work/pg"
  echo "$PGPASSWORD" >"$work/pg/password"
  if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
    as_postgres=(setpriv --reuid=postgres --regid=postgres --init-groups)
    chown -R postgres "$work/pg"
  fi
  (cd "$work/pg" && "${as_postgres[@]}" "$bin/initdb" -D "$work/pg/data" -U postgres --auth=scram-sha-256 \
    --pwfile="$work/pg/password" --encoding=UTF8 --locale=C --no-sync >"$work/initdb.log" 2>&1) ||
    fail "initdb failed: $(cat "$work/initdb.log")"
  pg_port=$(free_port 54320)
  setsid "${as_postgres[@]}" setpriv --pdeathsig QUIT "$bin/postgres" -D "$work/pg/data" -p "$pg_port" \
    -c listen_addresses=127.0.0.1 -c unix_socket_directories="$work/pg" -c wal_level=logical \
    >"$work/postgres.log" 2>&1 </dev/null &
  postgres_pid=$!
  local server=(-h 127.0.0.1 -p "$pg_port" -U postgres)
  until_true 30 "$postgres_pid" "$bin/pg_isready" -q "${server[@]}" || fail "PostgreSQL did not start: $(cat "$work/postgres.log")"
  "$bin/createdb" "${server[@]}" shop
  "$bin/psql" -q -v ON_ERROR_STOP=1 "${server[@]}" -f deploy/demo/schema.sql shop
  SOURCE_URL=postgres://postgres@127.0.0.1:$pg_port/shop
  pgbench=("$bin/pgbench" -n -c 2 -R 4 -T 1000000000 "${server[@]}"
    -f deploy/demo/workload/order.sql@4 -f deploy/demo/workload/progress.sql@4
    -f deploy/demo/workload/join.sql@2 -f deploy/demo/workload/leave.sql@1 shop)
}

# One change a line, from Debezium's envelope: table, operation, key, and the row as it is now (or was).
show_changes() {
  sed -uE '
    /\t$/d
    s/^([^\t]*)\t.*"before":(.*),"after":(.*),"source":.*"table":"([^"]*)".*"op":"([a-z])".*$/\4\t\5\t\1\t\3\t\2/
    s/\tnull\t/\t/; s/(.*)\t.*/\1/
    s/\tc\t/\tinsert\t/; s/\tu\t/\tupdate\t/; s/\td\t/\tdelete\t/; s/\tr\t/\tread\t/; s/\tt\t/\ttruncate\t/
    s/\t/  /g
    s/^(.{118}).{3,}$/\1 …/
    s/^/  /'
}

if [ -z "${SOURCE:-}" ]; then
  say "Starting a throwaway PostgreSQL 15 with wal_level=logical"
  start_postgres
  data_dir=${DATA_DIR:-$work/data}
  database=shop
else
  SOURCE_URL=$SOURCE
  data_dir=${DATA_DIR:-millrace-data}
  database=${SOURCE%%\?*}
  database=${database##*/}
fi
task=${TASK:-$(tr '[:upper:]' '[:lower:]' <<<"$database" | tr -c 'a-z0-9_\n' '_' | cut -c1-40)}
kafka_port=$(free_port 9092)
http_port=$(free_port 9080)

say "Starting Millrace"
setsid setpriv --pdeathsig TERM "$millrace" up "$SOURCE_URL" --task "$task" --data-dir "$data_dir" \
  ${PARTITIONS:+--partitions "$PARTITIONS"} \
  --kafka-listen "127.0.0.1:$kafka_port" --http-listen "127.0.0.1:$http_port" </dev/null &
millrace_pid=$!
until_true 60 "$millrace_pid" ready || fail "Millrace did not become ready; what it said stands above"
was_ready=yes

say "Read the changes in another terminal"
kafka=127.0.0.1:$kafka_port http=http://127.0.0.1:$http_port
cat <<END
  every change so far, then each new one
    kcat -C -b $kafka -t $task -o beginning
  as a member of a consumer group; start it twice to share (with PARTITIONS=4)
    kcat -b $kafka -G my-group $task
  with Java's console consumer, where you have Kafka's tools, and where you have a JDK and Maven
    kafka-console-consumer.sh --bootstrap-server $kafka --topic $task --from-beginning
    make console-consumer BOOTSTRAP=$kafka TOPIC=$task
  health and metrics
    $http/health/ready  $http/metrics
END
if [ -n "$postgres_pid" ]; then
  printf '  make changes of your own\n    %s\n' "PGPASSWORD=$PGPASSWORD psql $SOURCE_URL"
fi
say "Changes as they happen (Ctrl-C stops all of it)"
seen=/dev/null
[ -z "${DEMO_SECONDS:-}" ] || seen=$work/seen
setsid setpriv --pdeathsig TERM kcat -q -u -E -C -b "$kafka" -t "$task" -o end -f '%k\t%s\n' </dev/null \
  2>"$work/kcat.log" > >(tee "$seen" | show_changes) &
consumer_pid=$!

if [ -n "$postgres_pid" ]; then
  setsid setpriv --pdeathsig TERM "${pgbench[@]}" >"$work/pgbench.log" 2>&1 </dev/null &
  workload_pid=$!
fi

deadline=$((SECONDS + ${DEMO_SECONDS:-1000000000}))
while [ "$SECONDS" -lt "$deadline" ]; do
  for pid in $workload_pid $consumer_pid $millrace_pid $postgres_pid; do
    kill -0 "$pid" 2>/dev/null ||
      fail "a part has ended by itself; last words: $(tail -qn 3 "$work"/*.log 2>/dev/null)"
  done
  sleep 1 &
  wait $!
done
[ -s "$seen" ] || fail "no change was seen in $DEMO_SECONDS seconds"
echo
echo "$(grep -c '"op":' "$seen") changes in $DEMO_SECONDS seconds"
