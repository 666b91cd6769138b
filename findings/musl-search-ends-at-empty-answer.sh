#!/usr/bin/env bash
# musl's resolver takes an empty answer (NOERROR without an address) to a name with one suffix of the search
# list for final: it asks for no further suffix, and the lookup fails. glibc goes on with the next one. After
# NXDOMAIN, both go on.
# Why it matters: the image's binary is linked with musl. A name server that answers so for one suffix of a pod's
# search list hides the names of all that follow; a name with a dot at its end is not searched for.
#
#     findings/musl-search-ends-at-empty-answer.sh    # ends with 0 while musl behaves so
#
# The musl is that of ziglang 0.15.2 of PyPI. Needs Linux, root, Python 3 and unshare: the name server listens in a
# network namespace of its own, at port 53.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --target zig ziglang==0.15.2
cat >look-up.c <<'C'
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int count, char **words) {
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(words[count - 1], "80", &hints, &found);
    puts(error == 0 ? "found" : "not found");
    return 0;
}
C
export ZIG_GLOBAL_CACHE_DIR=$folder/cache ZIG_LOCAL_CACHE_DIR=$folder/cache
for libc in musl gnu; do
  PYTHONPATH=zig python3 -m ziglang cc -target "$(uname -m)-linux-$libc" -o "$libc" look-up.c
done
printf 'nameserver 127.0.0.1\nsearch first.test second.test\noptions timeout:2 attempts:2\n' >resolv.conf
cat >server.py <<'PYTHON'
"""Has an address for the second suffix, and answers with the code in its argument to the first one."""
import socket
import struct
import sys

server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
print("listens", flush=True)
while True:
    query, client = server.recvfrom(512)
    question = query[12 : query.index(b"\0", 12) + 5]
    is_second = b"\6second" in question
    code = 0 if is_second else int(sys.argv[1])
    answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([192, 0, 2, 1]) if is_second else b""
    head = query[:2] + struct.pack(">HHHHH", 0x8580 | code, 1, int(is_second), 0, 0)
    server.sendto(head + question + answer, client)
PYTHON
cat >inside.sh <<'SH'
set -eu
ip link set lo up
mount --bind resolv.conf /etc/resolv.conf
for code in 0 3; do
  python3 server.py "$code" >"said-$code" &
  server=$!
  until grep -q listens "said-$code"; do sleep 0.05; done
  for libc in musl gnu; do echo "$code $libc $("./$libc" service)"; done
  kill "$server"
  wait "$server" 2>/dev/null || true
done
SH
unshare --net --mount sh inside.sh | tee outcome
PYTHONPATH=zig python3 -m ziglang version
if [ "$(cat outcome)" != $'0 musl not found\n0 gnu found\n3 musl found\n3 gnu found' ]; then
  echo "one of them behaves differently now" >&2
  exit 1
fi
