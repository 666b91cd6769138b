#!/usr/bin/env bash
# While a slot is moved key by key (SETSLOT IMPORTING and MIGRATING, then MIGRATE for each key), a script at the
# importing node, after ASKING, that reads a key which it did not declare gets nil if that key is still at the
# source, as if it did not exist, and no error. If the script writes to the key, it makes a second one, and MIGRATE
# of the first one fails with BUSYKEY. At the source, a script that reads a key which has left fails ("non local key").
# A script that declares keys of both nodes is answered TRYAGAIN by either. But a script that declares a key which never existed,
# beside one that exists, runs nowhere from SETSLOT MIGRATING to SETSLOT NODE: the source answers TRYAGAIN before
# anything has moved, and the importing node still does so after everything has. Redis 7.0, Redis 8.2 and Valkey 9.1
# are alike.
# Why it matters: to a client that follows ASK, a ledger that is half there looks like one that lost its log. consentd
# sends no ASKING; beside the script, each poll names all keys that it reads in an EXISTS, which a node answers only
# while it has them all; and `consentd init` creates every key that an append declares.
#
#     findings/undeclared-keys-vanish-in-a-migrating-slot.sh     # ends with 0 while the servers behave so
set -euo pipefail
support=$(cd "$(dirname "$0")/support" && pwd)
folder=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
. "$support/servers"

cat >"$folder/try.py" <<'PYTHON'
import sys
import redis
from cluster import Cluster, until

DECLARED = "return redis.call('MGET', unpack(KEYS))"
UNDECLARED = "return redis.call(ARGV[1], ARGV[2])"
answers = []


def script(label, node, expected, text, keys, *arguments):
    """Prints what a script is answered: at the importing node after ASKING, on the same connection."""
    with redis.Redis(port=node.port, decode_responses=True, single_connection_client=True) as client:
        try:
            if node is importing:
                client.execute_command("ASKING")
            answer = client.eval(text, len(keys), *keys, *arguments)
        except redis.ResponseError as error:
            codes = ("ASK ", "TRYAGAIN ", "non local key")
            answer = next((code.strip() for code in codes if code in f"{error} "), str(error))
    place = "importing node" if node is importing else "source"
    print(f"    {place}, {label}: {answer}")
    answers.append(answer == expected)


def both(node, expected):
    script("declares one and two", node, expected, DECLARED, ["{s}one", "{s}two"])


def absent(node, expected):
    script("declares one and never", node, expected, DECLARED, ["{s}one", "{s}never"])


def undeclared(node, expected, command, declared, key):
    keys = ["{s}" + declared]
    script(f"declares {declared}, {command} {key}", node, expected, UNDECLARED, keys, command, "{s}" + key)


def move(key):
    return source.ask("MIGRATE", "127.0.0.1", importing.port, "{s}" + key, 0, 5000)


with Cluster(sys.argv[1], 2) as nodes:
    source, importing = nodes
    slot = source.ask("CLUSTER", "KEYSLOT", "{s}")
    source.client.mset({"{s}one": 1, "{s}two": 2})
    print("  before, with the keys one and two")
    absent(source, ["1", None])
    undeclared(source, "2", "GET", "one", "two")

    assert importing.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id) == "OK"
    assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", importing.id) == "OK"
    print("  SETSLOT IMPORTING and MIGRATING, nothing moved")
    both(source, ["1", "2"])
    absent(source, "TRYAGAIN")
    script("declares never", source, "ASK", DECLARED, ["{s}never"])
    undeclared(source, "2", "GET", "one", "two")
    undeclared(source, "non local key", "GET", "one", "never")

    moved = [move("one")]
    print("  one moved")
    both(source, "TRYAGAIN")
    both(importing, "TRYAGAIN")
    undeclared(source, "non local key", "GET", "two", "one")
    undeclared(importing, "1", "GET", "one", "one")
    undeclared(importing, None, "GET", "one", "two")
    undeclared(importing, 1, "INCR", "one", "two")
    refused = move("two")
    print(f"    MIGRATE of two: {refused}")
    answers.append("BUSYKEY" in refused)
    undeclared(importing, 1, "DEL", "one", "two")

    moved.append(move("two"))
    print("  both moved")
    both(importing, ["1", "2"])
    absent(source, "ASK")
    absent(importing, "TRYAGAIN")

    for node in (importing, source):
        assert node.ask("CLUSTER", "SETSLOT", slot, "NODE", importing.id) == "OK"
    print("  SETSLOT NODE")
    absent(importing, ["1", None])
print(f"  {sum(answers)} of {len(answers)} answers as described")
sys.exit(0 if all(answers) and moved == ["OK", "OK"] else 1)
PYTHON

for server in "$redis_7" "$redis_8" "$valkey"; do
  try "$server" "$folder/try.py"
done
