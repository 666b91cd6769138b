#!/usr/bin/env bash
# On Linux, epoll with EPOLLET reports a Unix stream socket as writable each time that its peer has read
# something, though its buffer was never full. A TCP socket is reported so only after a write had to wait. A
# server that watches for both directions, as Tokio's UnixStream does, is therefore woken twice for each call:
# for the request, and once the client has read the answer. (net/unix/af_unix.c: unix_write_space; for TCP
# net/core/stream.c: sk_stream_write_space asks for SOCK_NOSPACE.)
#
#     findings/unix-socket-writable-at-each-read.sh     # ends with 0 while the kernel behaves so
set -euo pipefail
uname -sr
exec python3 - <<'PYTHON'
import select
import socket
import sys

CALLS = 100


def tcp():
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    return listener.accept()[0], client


def wakes(server, client, interest):
    """How often the server is woken in these calls, each of a request, an answer, and the client's reading it."""
    poll = select.epoll()
    poll.register(server.fileno(), interest | select.EPOLLET)
    poll.poll(0)  # that it can be written to at first
    count = 0
    for _ in range(CALLS):
        client.sendall(b"request")
        count += bool(poll.poll(1))
        server.recv(100)
        server.sendall(b"answer")
        client.recv(100)
        count += bool(poll.poll(0.01))
    return count


both = select.EPOLLIN | select.EPOLLOUT
found = {
    ("Unix", "both directions"): wakes(*socket.socketpair(), both),
    ("Unix", "reading"): wakes(*socket.socketpair(), select.EPOLLIN),
    ("TCP", "both directions"): wakes(*tcp(), both),
    ("TCP", "reading"): wakes(*tcp(), select.EPOLLIN),
}
for (kind, interest), count in found.items():
    print(f"  {kind}, watched for {interest}: woken {count} times by {CALLS} calls")
sys.exit(0 if list(found.values()) == [2 * CALLS, CALLS, CALLS, CALLS] else 1)
PYTHON
