#!/usr/bin/env bash
# When CLUSTER FAILOVER makes a replica the primary of its slots, Redis 8.2 and Valkey 9.1 end the shard
# subscriptions (SSUBSCRIBE) at that very node, as at every other node of the shard: the client gets a
# `sunsubscribe` that it did not ask for, its connection stays open, and no message of that channel comes any more,
# though the node is now the primary of the channel's slot, and SSUBSCRIBE is accepted there at once. Redis 7.0
# keeps the subscription at the promoted replica, and ends those at the former primary and at other replicas.
# SUBSCRIBE is kept by all, on the same connections.
# Why it matters: a client that looks up the slot's primary, and finds itself connected to it, is subscribed to
# nothing. An unasked `sunsubscribe` means to subscribe again, and that messages were missed, wherever the slot is.
#
#     findings/shard-subscription-ended-at-promotion.sh     # ends with 0 while the servers behave so
set -euo pipefail
support=$(cd "$(dirname "$0")/support" && pwd)
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
. "$support/servers"

cat >"$folder/try.py" <<'PYTHON'
import sys
import redis
from cluster import Cluster, until

binary, expected = sys.argv[1:]


class Listener:
    """A connection that is subscribed to the channel `shard` of a slot, and to the channel `plain`."""

    def __init__(self, name, node):
        self.name, self.node = name, node
        self.connection = redis.connection.Connection(port=node.port, decode_responses=True, socket_timeout=10)
        self.connection.connect()
        for command in (("SSUBSCRIBE", "shard"), ("SUBSCRIBE", "plain")):
            self.connection.send_command(*command)
            self.connection.read_response()

    def received(self):
        """What came before the next message of `plain`, without channels and counts, and that message."""
        received = []
        while not received or received[-1] != "message":
            kind, _, what = self.connection.read_response()
            received.append(kind if kind == "message" else f"{kind} {what}")
        return received


with Cluster(binary, 3) as nodes:
    primary, promoted, other = nodes
    for replica in (promoted, other):
        until("a node is a replica", lambda: replica.ask("CLUSTER", "REPLICATE", primary.id) == "OK")
        until("a replica is connected", lambda: replica.follows(primary))
    # A primary ignores the failover of a node that it does not know as its replica yet.
    for node in nodes:
        until("all know the replicas", lambda: len(node.ask("CLUSTER", "REPLICAS", primary.id)) == 2)
    listeners = [
        Listener("the promoted replica", promoted),
        Listener("the former primary", primary),
        Listener("the other replica", other),
    ]
    # A message of `plain` follows on the same connections and links, so that nothing has to be waited for.
    primary.client.execute_command("SPUBLISH", "shard", "before")
    primary.client.publish("plain", "first")
    before = [listener.received() for listener in listeners]

    assert promoted.ask("CLUSTER", "FAILOVER") == "OK"
    until("it is over", lambda: primary.follows(promoted) and other.follows(promoted))
    promoted.client.execute_command("SPUBLISH", "shard", "after")
    promoted.client.publish("plain", "second")
    after = [listener.received() for listener in listeners]
    for listener, received in zip(listeners, after):
        print(f"  at {listener.name}: {', '.join(received)}")

    first = listeners[0].connection
    first.send_command("SSUBSCRIBE", "shard")
    again = first.read_response()[0]
    promoted.client.execute_command("SPUBLISH", "shard", "last")
    last = first.read_response()
    print(f"  SSUBSCRIBE again at the promoted replica: {again}, then {last[0]} {last[2]}")

kept, ended = ["smessage after", "message"], ["sunsubscribe 0", "message"]
is_so = all(received == ["smessage before", "message"] for received in before)
is_so &= after == [kept if expected == "kept" else ended, ended, ended]
is_so &= again == "ssubscribe" and last == ["smessage", "shard", "last"]
sys.exit(0 if is_so else 1)
PYTHON

try "$redis_7" "$folder/try.py" kept
try "$redis_8" "$folder/try.py" ended
try "$valkey" "$folder/try.py" ended
