#!/usr/bin/env bash
# Shows that apt's DPkg::Lock::Timeout, which makes `apt-get install` wait for a lock, does not make
# `apt-get update` wait for the lock of its package lists: it fails at once.
# Why it matters: scripts/test installs what tests need on machines that update themselves at first.
# Uses folders of its own for all locks, and installs nothing. Needs apt (Debian) and Python 3.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${holder:-}" 2>/dev/null || true; rm -r "$folder"' EXIT
mkdir -p "$folder"/{lists/partial,dpkg/updates,dpkg/info}
: >"$folder/dpkg/status"

# Takes both locks as another apt would, says so, and gives them up after $1 seconds.
hold() {
  python3 -c '
import fcntl, sys, time
locks = [open(path, "w") for path in sys.argv[2:]]
for lock in locks:
    fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(float(sys.argv[1]))' "$1" "$folder/lists/lock" "$folder/dpkg/lock-frontend" >"$folder/said" &
  holder=$!
  until grep -q held "$folder/said"; do sleep 0.05; done
}

quiet=(-o "Dir::State::Lists=$folder/lists" -o "Dir::State::status=$folder/dpkg/status"
  -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=/dev/null -o DPkg::Lock::Timeout=30 -q)
apt-get --version | head -1

hold 5
began=$(date +%s%N)
if output=$(LC_ALL=C apt-get "${quiet[@]}" update 2>&1); then updated=0; else updated=$?; fi
echo "update with a timeout of 30 s: exit code $updated after $((($(date +%s%N) - began) / 1000000)) ms"
echo "$output" | grep '^E:' || true
wait "$holder"

hold 5
began=$(date +%s%N)
if LC_ALL=C apt-get "${quiet[@]}" -y install >/dev/null 2>&1; then installed=0; else installed=$?; fi
waited=$((($(date +%s%N) - began) / 1000000))
echo "install (of nothing) with a timeout of 30 s: exit code $installed after $waited ms"
wait "$holder"

if [ "$updated" = 0 ] || [[ $output != *"Could not get lock"* ]] || [ "$installed" != 0 ] || [ "$waited" -lt 2000 ]; then
  echo "apt behaves differently now" >&2
  exit 1
fi
