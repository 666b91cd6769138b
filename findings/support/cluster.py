"""A Cluster of real servers on free loopback ports, which ends with the `with` block that it is used in."""
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import redis

# Ports of nodes. Each is 10,000 below that of its bus; both are below those that Linux gives to outgoing connections.
PORTS = range(12_000, 22_000)
BUS = 10_000
DEADLINE_SECONDS = 20


def until(what, condition):
    """Waits for a condition, and fails if it does not come true."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {DEADLINE_SECONDS} s in vain: {what}")
        time.sleep(0.02)


def is_free(port):
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Node:
    def __init__(self, binary, folder):
        self.port = next(
            port for port in random.sample(PORTS, len(PORTS)) if is_free(port) and is_free(port + BUS)
        )
        os.mkdir(folder)
        words = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", folder, "--save", ""]
        words += ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
        words += ["--repl-diskless-sync-delay", "0"]
        self.process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, decode_responses=True)

    def ask(self, *words):
        """The reply to a command, or what the server says against it."""
        try:
            return self.client.execute_command(*words)
        except redis.ResponseError as error:
            return f"refused: {error}"

    def is_up(self):
        if self.process.poll() is not None:
            raise ChildProcessError(f"a server ended with {self.process.returncode}")
        try:
            return self.client.ping()
        except redis.ConnectionError:
            return False

    def follows(self, primary):
        """Whether this node is a replica of that one, and its link is up."""
        role, *rest = self.client.execute_command("ROLE")
        return role == "slave" and int(rest[1]) == primary.port and rest[2] == "connected"


class Cluster:
    """Nodes that have met. The first one owns all slots."""

    def __init__(self, binary, count):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        self.binary, self.count = binary, count
        self.nodes = []

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        try:
            for number in range(self.count):
                self.nodes.append(Node(self.binary, f"{self.folder.name}/{number}"))
            self._meet()
        except BaseException:
            self.__exit__()
            raise
        return self.nodes

    def _meet(self):
        for node in self.nodes:
            until("a server answers", node.is_up)
            node.id = node.ask("CLUSTER", "MYID")
        first, *others = self.nodes
        first.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        for node in others:
            node.ask("CLUSTER", "MEET", "127.0.0.1", first.port)
        until("all nodes know each other", lambda: all(self._knows_all(node) for node in self.nodes))

    def _knows_all(self, node):
        state = node.client.cluster("INFO")
        return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == self.count

    def __exit__(self, *_):
        for node in self.nodes:
            node.process.kill()
            node.process.wait()
        self.folder.cleanup()
