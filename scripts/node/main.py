"""Runs the checks of checks.py on a node, and prints what they saw as a table; called by scripts/kubernetes."""
import argparse, os, platform, re, shutil, subprocess, sys, tempfile, time

import checks
import images
from node import IP, Node, wait

VERSION = os.environ["KUBERNETES_VERSION"]


class Checked(Node):
    """A node with ledgers."""

    def redis(self, port):
        """Starts a Redis in the node, and makes its ledgers."""
        folder = os.path.join(self.run, f"redis-{port}")
        os.makedirs(folder)
        self.background("redis-server", "--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", folder,
                        "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
        wait("Redis", 20, lambda: "PONG" in self.inside("redis-cli", "-p", str(port), "ping", check=False))
        for database in (0, 1):
            self.inside(os.path.join(self.run, "consentd"), "init", "--ledger", f"redis://{IP}:{port}/{database}")


def versions(node):
    def first(*command):
        return subprocess.run(command, capture_output=True, text=True).stdout.split("\n")[0].strip()
    return ", ".join([
        "kubelet " + VERSION, re.sub(r"^containerd \S+ (\S+).*", r"containerd \1", first("containerd", "--version")),
        first("runc", "--version").replace(" version", ""), f"Linux {platform.release()}", "cgroup v1",
        first("redis-server", "--version").split(" sha")[0].replace(" server v=", " ")])


def run(node, name, claim, fault, function, broken):
    """Runs one check, and returns whether it ended as it should, with a line of the table."""
    started = time.monotonic()
    try:
        said, passed = function(node, broken), True
    except AssertionError as error:
        said, passed = str(error).split("\n")[0][:300], False
    finally:
        for pod in list(node.pods()):
            node.remove(pod)
    wait("the check's pods are gone", 90, lambda: not node.pods())
    took = time.monotonic() - started
    if broken:
        right, word = not passed, "seen to fail" if not passed else "DID NOT FAIL"
        claim = f"{claim}: with {fault}"
    else:
        right, word = passed, "holds" if passed else "FAILS"
    print(f"| {claim} | {word} | {said.replace('|', '/')} | {took:.0f} s |", flush=True)
    return right


def main():
    parser = argparse.ArgumentParser(prog="scripts/kubernetes", description="Checks the chart's pods on a real kubelet.")
    parser.add_argument("--programs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--image", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--only", metavar="NAME", action="append", help="only this check; may be repeated")
    parser.add_argument("--faults", action="store_true", help="run each check with its fault too, with which it must fail")
    parser.add_argument("--shell", action="store_true", help="start a node with an API server, and a shell in it with kubectl and helm")
    parser.add_argument("--api", action="store_true", help="also the checks through an API server, as workloads under `restricted`")
    parser.add_argument("--keep", action="store_true", help="keep the node's folder with its logs")
    options = parser.parse_args()
    known = [name for name, *_ in checks.CHECKS]
    for name in options.only or []:
        if name not in known:
            parser.error(f"--only {name}: one of {', '.join(known)}")
    folder = tempfile.mkdtemp(prefix="consentd-node.")
    executable = os.path.join(folder, "run", "consentd")
    try:
        node = Checked(options.programs, options.image, os.path.join(folder, "run"), api=options.shell)
        right = True
        try:
            with open(executable, "wb") as file:
                file.write(images.binary(options.image))
            os.chmod(executable, 0o755)
            node.redis(6379)
            print(f"On {versions(node)}; the node was up in {node.seconds:.0f} s.\n", flush=True)
            if options.shell:
                subprocess.run(["nsenter", "--target", open(os.path.join(node.run, "pid")).read().strip(), "--mount", "--pid", "--net", "--uts",
                                "--ipc", "--", "bash"], env={**os.environ, "KUBECONFIG": os.path.join(node.run, "kubeconfig"),
                                                            "PATH": f"{options.programs}:{os.path.dirname(os.environ['HELM'])}:{os.environ['PATH']}"})
            else:
                print("| check | | seen | took |\n|---|---|---|---|", flush=True)
                for name, claim, fault, function in checks.CHECKS:
                    if not options.only or name in options.only:
                        right &= run(node, name, claim, fault, function, False)
                        if options.faults:
                            right &= run(node, name, claim, fault, function, True)
        finally:
            left = node.stop(keep=options.keep)
        if left:
            print(f"\nthe node has left something behind: {', '.join(left)}")
        else:
            print("\nNothing is left behind: processes, mounts, cgroups and the kernel's settings are as before.")
        return 0 if right and not left else 1
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
