"""Runs the checks of checks.py on a node, and prints what they saw as a table; called by scripts/kubernetes."""
import argparse, glob, os, platform, re, shutil, signal, subprocess, sys, tempfile, time

import checks
import images
import workloads
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


def remove_pods(node):
    for pod in list(node.pods()):
        node.remove(pod)
    node.until_gone(90)
    # The kubelet removes logs a minute later. The next pod of the same name must not be taken for this one.
    for folder in glob.glob(os.path.join(node.run, "pods", "*")):
        shutil.rmtree(folder)


def run(node, claim, fault, function, broken, clean):
    """Runs one check, and returns whether it ended as it should. Prints a line of the table."""
    started = time.monotonic()
    try:
        said, passed = function(node, broken), True
    except (AssertionError, LookupError, ValueError) as error:
        said, passed = (str(error) or repr(error)).strip().split("\n")[0][:300], False
    finally:
        clean(node)
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
    # So that an end from outside takes the node along as well.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    static, through_api = checks.CHECKS, workloads.CHECKS if options.api else []
    known = [name for name, *_ in static + through_api]
    for name in options.only or []:
        if name not in known:
            parser.error(f"--only {name}: one of {', '.join(known)}")
    if options.shell:
        return on_a_node(options, True, shell)
    right = True
    for api, prepare, clean, wanted in [(False, lambda node: None, remove_pods, static),
                                        (True, workloads.prepare, workloads.clean, through_api)]:
        wanted = [check for check in wanted if not options.only or check[0] in options.only]
        if wanted:
            right &= on_a_node(options, api, lambda node: table(node, options, wanted, prepare, clean)) == 0
    return 0 if right else 1


def table(node, options, wanted, prepare, clean):
    """Runs checks, and returns whether all are right."""
    prepare(node)
    print("| check | | seen | took |\n|---|---|---|---|", flush=True)
    right = True
    for _, claim, fault, function in wanted:
        right &= run(node, claim, fault, function, False, clean)
        if options.faults:
            right &= run(node, claim, fault, function, True, clean)
    return right


def shell(node):
    """A shell in the node."""
    path = f"{node.programs}:{os.path.dirname(os.environ['HELM'])}:{os.environ['PATH']}"
    subprocess.run(node.enter("bash"), env={**os.environ, "KUBECONFIG": node.config, "PATH": path})
    return True


def on_a_node(options, api, work):
    """Starts a node for some work, and ends it. Returns an exit code."""
    folder = tempfile.mkdtemp(prefix="consentd-node.")
    try:
        node = Checked(options.programs, options.image, os.path.join(folder, "run"), api=api)
        try:
            executable = os.path.join(node.run, "consentd")
            with open(executable, "wb") as file:
                file.write(images.binary(options.image))
            os.chmod(executable, 0o755)
            node.redis(6379)
            print(f"\nOn {versions(node)}{', with an API server, scheduler and controllers' if api else ''}; "
                  f"the node was up in {node.seconds:.0f} s.\n", flush=True)
            right = work(node)
        finally:
            left = node.stop(keep=options.keep)
        print(f"\nThe node has left something behind: {', '.join(left)}" if left else
              "\nNothing is left behind: processes, mounts, cgroups and the kernel's settings are as before.")
        return 0 if right and not left else 1
    finally:
        if options.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
