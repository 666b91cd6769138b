"""The pods of the checks: what the chart renders, as it is, or with one deliberate fault."""
import copy, os, subprocess

import yaml

from node import IP

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
LEDGER = f"redis://{IP}:6379"


def render(kind, app, *settings, ledger=LEDGER):
    """The object of a kind that deploy/helm/example-sender renders."""
    sets = [f"app=localhost/app:{app}", "consentd.image.repository=localhost/consentd", f"consentd.ledger.url={ledger}",
            "consentd.ledger.user=", "consentd.ledger.passwordSecret=", *settings]
    done = subprocess.run(
        [os.environ["HELM"], "template", "sender", os.path.join(ROOT, "deploy/helm/example-sender"), "--namespace", "consent",
         "--kube-version", "1.34.4", *[word for one in sets for word in ("--set", one)]], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(done.stderr)
    (found,) = [o for o in yaml.safe_load_all(done.stdout) if o and o["kind"] == kind]
    return found


def pod(name, app, *settings, kind="Deployment", ledger=LEDGER):
    """A pod with the template of that object, to be run without an API server."""
    template = render(kind, app, *settings, ledger=ledger)["spec"]["template"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {"restartPolicy": "Always", **template["spec"]}}


def sidecar(pod):
    return pod["spec"]["initContainers"][0]


def with_ordinary_containers(pod):
    """The fault of a pod in which consentd is a container like the app."""
    pod = copy.deepcopy(pod)
    consentd = pod["spec"]["initContainers"].pop()
    del consentd["restartPolicy"], consentd["startupProbe"]
    # First, so that it has a start of a second or so.
    pod["spec"]["containers"].insert(0, consentd)
    return pod
