"""What must hold of the chart's workloads through an API server, with the scheduler and the controllers.

As in checks.py, each check has a fault with which it must fail. A namespace refuses pods that do not keep to
`restricted`, and warns of workloads that would make such pods.
"""
import glob, json, os, subprocess, threading, time

import yaml

import pods
from node import wait

CHECKS = []
NAMESPACE = "consent"
HELM = os.environ["HELM"]
USER, BUSINESS = "15550123456", "acme"
OPT_IN = ["record", "opt-in", USER, BUSINESS, "marketing", "--method", "website", "--business-name", "Acme",
          "--statement", "Yes, send me offers from Acme on WhatsApp"]


def check(claim, fault):
    def add(function):
        CHECKS.append((function.__name__, claim, fault, function))
        return function
    return add


def prepare(node):
    labels = "".join(f", pod-security.kubernetes.io/{mode}: restricted" for mode in ("enforce", "warn"))
    apply(node, f"{{apiVersion: v1, kind: Namespace, metadata: {{name: {NAMESPACE}, labels: {{name: {NAMESPACE}{labels}}}}}}}", [])


def clean(node):
    """Removes what a check has made."""
    for release in node.inside(HELM, "--kubeconfig", node.config, "-n", NAMESPACE, "list", "-q").split():
        node.inside(HELM, "--kubeconfig", node.config, "-n", NAMESPACE, "uninstall", release)
    for kind in ("service", "job", "statefulset", "deployment", "persistentvolumeclaim", "secret"):
        node.kubectl("-n", NAMESPACE, "delete", kind, "--all", "--wait=false")
    node.kubectl("delete", "persistentvolume", "--all", "--wait=false")
    wait("all pods are gone", 120, lambda: not node.kubectl("-n", NAMESPACE, "get", "pods", "-o", "name"))


def kubectl(node, *arguments, **more):
    return node.kubectl("-n", NAMESPACE, *arguments, **more)


def apply(node, text, options, namespace=None):
    command = ["nsenter", "--target", node.pid, "--mount", "--net", "--", os.path.join(node.programs, "kubectl"),
               "--kubeconfig", node.config, *(["-n", namespace] if namespace else []), "apply", "-f", "-", *options]
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def helm(node, *arguments):
    return node.inside(HELM, "--kubeconfig", node.config, "-n", NAMESPACE, *arguments)


def sets(*settings):
    return [word for one in settings for word in ("--set", one)]


def sender(*settings, app="waits"):
    return [
        "install", "sender", os.path.join(pods.ROOT, "deploy/helm/example-sender"), *sets(
            f"app=localhost/app:{app}", "consentd.image.repository=localhost/consentd", "consentd.pairs=100000",
            "consentd.ledger.url=redis://redis:6379", "consentd.ledger.user=", "consentd.ledger.passwordSecret=", *settings)]


def secret(node, name, **files):
    """Makes a Secret, or replaces its content."""
    content = json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": files})
    apply(node, content, [], NAMESPACE)


def pod_of(node, component):
    """The name and the address of a part's pod that is ready and stays."""
    found = json.loads(kubectl(node, "get", "pods", "-l", f"app.kubernetes.io/component={component}", "-o", "json"))["items"]
    for pod in found:
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
        if ready and not pod["metadata"].get("deletionTimestamp"):
            return pod["metadata"]["name"], pod["status"]["podIP"]
    return None


def consentd(node, *arguments):
    """The exit code and the output of a command of consentd in the node."""
    done = subprocess.run(["nsenter", "--target", node.pid, "--mount", "--net", "--", os.path.join(node.run, "consentd"), *arguments],
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@check("Everything that the chart renders is accepted under `restricted`", "no seccomp profile")
def restricted(node, fault):
    count = 0
    for path in sorted(glob.glob(os.path.join(pods.ROOT, "deploy/helm/golden/*.yaml"))):
        with open(path) as file:
            objects = [o for o in yaml.safe_load_all(file) if o]
        # The kinds of other projects are unknown to a bare API server.
        objects = [o for o in objects if "monitoring.coreos.com" not in o["apiVersion"] and "cert-manager.io" not in o["apiVersion"]
                   and "gateway.networking.k8s.io" not in o["apiVersion"]]
        if not objects:
            continue
        text = yaml.safe_dump_all(objects)
        if fault:
            text = text.replace("type: RuntimeDefault", "type: Unconfined")
        _, warnings = apply(node, text, ["--dry-run=server"], NAMESPACE)
        assert not warnings, f"{os.path.basename(path)}: {warnings}"
        count += len(objects)
    return f"{count} objects by server-side dry run, without a warning"


@check("helm install makes a Deployment whose sidecar denies", "a ledger that nobody made")
def install(node, fault):
    helm(node, *sender(*(["consentd.ledger.url=redis://redis:6379/9"] if fault else [])))
    kubectl(node, "rollout", "status", "deployment/sender-deployment", "--timeout=40s")
    done = node.kubectl("-n", NAMESPACE, "exec", "deploy/sender-deployment", "-c", "consentd", "--",
                        "/consentd", "check", USER, BUSINESS, "marketing", any_code=True)
    assert "denied: NO_CONSENT" in done, done
    count = len(kubectl(node, "get", "pods", "-l", "app=sender", "-o", "name").split())
    return f"{count} pods ready; kubectl exec printed {done.splitlines()[0]}"


@check("A Job is complete when its app has ended", "an app that stays")
def complete(node, fault):
    helm(node, *sender(app="stays" if fault else "ends"))
    kubectl(node, "wait", "--for=condition=complete", "job/sender-job", "--timeout=30s")
    return "kubectl wait saw it complete"


@check("A record token that is replaced in its Secret is revoked, without a restart", "it is not replaced")
def token(node, fault):
    tokens = {name: name * 32 for name in "ab"}
    for name, value in tokens.items():
        path = os.path.join(node.run, f"token-{name}")
        with open(path, "w") as file:
            file.write(value)
        os.chmod(path, 0o600)
    secret(node, "consentd-tokens", **{"record-tokens": tokens["a"]})
    recorder(node)
    name, address = wait("a recorder is ready", 60, lambda: pod_of(node, "recorder"))

    def records(token):
        code, said = consentd(node, *OPT_IN, "--addr", f"{address}:50052",
                              "--token-file", os.path.join(node.run, f"token-{token}"))
        assert code == 0 or "UNAUTHENTICATED" in said.upper(), said
        return code == 0
    assert records("a") and not records("b")
    if not fault:
        secret(node, "consentd-tokens", **{"record-tokens": tokens["b"]})
    wait("the new token is accepted", 90, lambda: records("b"), every=0.5)
    assert not records("a"), "the former token is still accepted"
    restarts = kubectl(node, "get", "pod", name, "-o", "jsonpath={.status.containerStatuses[0].restartCount}")
    assert restarts == "0", restarts
    return "the new one accepted and the former one UNAUTHENTICATED, 0 restarts"


def recorder(node, *settings):
    helm(node, "install", "consentd", os.path.join(pods.ROOT, "deploy/helm/consentd"), *sets(
        "image.repository=localhost/consentd", "pairs=100000", "ledger.url=redis://redis:6379", "recorder.enabled=true",
        "recorder.tokenSecret=consentd-tokens", "recorder.replicas=1", *settings))


@check("A recorder serves TLS to clients with certificates, and probes without", "a client of another CA")
def tls(node, fault):
    folder = os.path.join(node.run, "tls")
    os.makedirs(folder, exist_ok=True)
    name = f"consentd-recorder.{NAMESPACE}.svc"
    for ca in ("server-ca", "client-ca", "other-ca"):
        openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={ca}",
                "-keyout", f"{ca}.key", "-out", f"{ca}.crt")
    issue(folder, "server-ca", "server", f"DNS:{name}")
    issue(folder, "client-ca", "client", "URI:spiffe://example.com/ns/crm/sa/crm")
    issue(folder, "other-ca", "other", "URI:spiffe://example.com/ns/crm/sa/crm")

    def text(file):
        with open(os.path.join(folder, file)) as opened:
            return opened.read()
    secret(node, "consentd-tokens", **{"record-tokens": "c" * 32})
    secret(node, "server", **{"tls.crt": text("server.crt"), "tls.key": text("server.key")})
    secret(node, "client-ca", **{"ca.crt": text("client-ca.crt")})
    recorder(node, "recorder.tls.secret=server", "recorder.tls.clientCASecret=client-ca", "recorder.tls.admin=true",
             r"roles.spiffe://example\.com/ns/crm/sa/crm={record}")
    _, address = wait("a recorder is ready, by its probes", 60, lambda: pod_of(node, "recorder"))
    with open(os.path.join(node.run, "hosts"), "a") as file:
        file.write(f"{address} {name}\n")

    def record(client):
        return consentd(node, *OPT_IN, "--addr", f"{name}:50052", "--ca-file", f"{folder}/server-ca.crt",
                        *(["--cert-file", f"{folder}/{client}.crt", "--key-file", f"{folder}/{client}.key"] if client else []))
    code, said = record("other" if fault else "client")
    assert code == 0, said
    refusals = []
    for client in (None, "other"):
        code, said = record(client)
        assert code != 0, f"{client} was not refused"
        refusals.append(said.strip().splitlines()[-1])
    code, said = consentd(node, *OPT_IN, "--addr", f"{name}:50052")
    assert code != 0, "it speaks plaintext too"
    metrics = node.inside("curl", "-fs", "--cacert", f"{folder}/server-ca.crt", "--cert", f"{folder}/client.crt", "--key", f"{folder}/client.key",
                          f"https://{name}:9464/metrics")
    assert "consent_tls_certificate_expiry_seconds 1" in metrics
    before = metrics.split("\nconsent_tls_certificate_expiry_seconds ")[1].split()[0]
    issue(folder, "server-ca", "server", f"DNS:{name}", days="1")
    secret(node, "server", **{"tls.crt": text("server.crt"), "tls.key": text("server.key")})

    def rotated():
        now = node.inside("curl", "-s", "--cacert", f"{folder}/server-ca.crt", "--cert", f"{folder}/client.crt", "--key",
                          f"{folder}/client.key", f"https://{name}:9464/metrics")
        return now.split("\nconsent_tls_certificate_expiry_seconds ")[1].split()[0] != before
    wait("the certificate of the Secret is in use", 90, rotated, every=0.5)
    code, said = record("client")
    assert code == 0, said
    return "records with a client's certificate alone; ready by probes without TLS; a renewed Secret in use without a restart"


def reloads(node):
    """How often each recorder has taken a new certificate into use."""
    found = json.loads(kubectl(node, "get", "pods", "-l", "app.kubernetes.io/component=recorder", "-o", "json"))["items"]
    texts = [node.inside("curl", "-s", f"http://{pod['status']['podIP']}:9464/metrics", check=False) for pod in found]
    return [int(text.split('consent_tls_reloads_total{outcome="done"} ')[1].split()[0]) if text else 0 for text in texts]


@check("Recorders are rolled without a lost call through their Service, while a certificate is renewed", "a Service that selects no pod")
def service(node, fault):
    folder = os.path.join(node.run, "service")
    os.makedirs(folder, exist_ok=True)
    openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=ca",
            "-keyout", "ca.key", "-out", "ca.crt")
    name = f"consentd-recorder.{NAMESPACE}.svc"

    def renew(days):
        issue(folder, "ca", "server", f"DNS:{name}", days=days)
        files = {}
        for file in ("crt", "key"):
            with open(os.path.join(folder, "server." + file)) as opened:
                files["tls." + file] = opened.read()
        secret(node, "server", **files)
    renew("2")
    token = os.path.join(folder, "token")
    with open(token, "w") as file:
        file.write("d" * 32)
    os.chmod(token, 0o600)
    secret(node, "consentd-tokens", **{"record-tokens": "d" * 32})
    recorder(node, "recorder.replicas=2", "recorder.tls.secret=server")
    kubectl(node, "rollout", "status", "deployment/consentd-recorder", "--timeout=120s")
    if fault:
        kubectl(node, "patch", "service", "consentd-recorder", "-p", '{"spec": {"selector": {"a": "b"}}}')
    address = kubectl(node, "get", "service", "consentd-recorder", "-o", "jsonpath={.spec.clusterIP}")
    with open(os.path.join(node.run, "hosts"), "r+") as file:
        # Names of former checks have led to a pod.
        lines = [line for line in file if name not in line]
        file.seek(0)
        file.truncate()
        file.writelines([*lines, f"{address} {name}\n"])

    def record():
        return consentd(node, *OPT_IN, "--addr", f"{name}:50052", "--ca-file", f"{folder}/ca.crt", "--token-file", token)
    wait("the Service leads to a recorder", 30, lambda: record()[0] == 0)
    failures, counts, ended = [], [0, 0], threading.Event()

    def load(index):
        while not ended.is_set():
            code, said = record()
            counts[index] += 1
            if code:
                failures.append(said.strip().splitlines()[-1])
    callers = [threading.Thread(target=load, args=(index,)) for index in (0, 1)]
    before = set(kubectl(node, "get", "pods", "-l", "app.kubernetes.io/component=recorder", "-o", "name").split())
    for caller in callers:
        caller.start()
    try:
        renew("1")
        wait("both recorders have the new certificate", 90, lambda: reloads(node) == [1, 1], every=0.5)
        kubectl(node, "rollout", "restart", "deployment/consentd-recorder")
        kubectl(node, "rollout", "status", "deployment/consentd-recorder", "--timeout=180s")
        # The former pods go on for a while after the new ones are ready.
        time.sleep(10)
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    after = set(kubectl(node, "get", "pods", "-l", "app.kubernetes.io/component=recorder", "-o", "name").split())
    assert not before & after or len(after - before) == 2, "the pods were not replaced"
    assert not failures, f"{len(failures)} of {sum(counts)} calls failed: {failures[0]}"
    return f"{sum(counts)} calls of two callers, each on a connection of its own, through kube-proxy: none failed"


def openssl(folder, *arguments):
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def issue(folder, ca, name, names, days="2"):
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr")
    with open(os.path.join(folder, f"{name}.ext"), "w") as file:
        file.write("subjectAltName=" + names)
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", days,
            "-out", f"{name}.crt", "-extfile", f"{name}.ext")


@check("A ledger in a claim outlives its pod, and stays its owner's alone", "an emptyDir instead of the claim")
def claim(node, fault):
    folder = os.path.join(node.run, "volume")
    os.makedirs(folder, exist_ok=True)
    os.chmod(folder, 0o755)
    apply(node, json.dumps({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "ledger"},
        "spec": {"capacity": {"storage": "8Gi"}, "accessModes": ["ReadWriteOncePod"], "persistentVolumeReclaimPolicy": "Retain",
                 "local": {"path": folder}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                     {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}]}]}}}}), [])
    path = os.path.join(node.run, "token-c")
    with open(path, "w") as file:
        file.write("c" * 32)
    os.chmod(path, 0o600)
    secret(node, "consentd-tokens", **{"record-tokens": "c" * 32})
    settings = ["image.repository=localhost/consentd", "pairs=100000", "standalone.enabled=true", "standalone.tokenSecret=consentd-tokens"]
    chart = os.path.join(pods.ROOT, "deploy/helm/consentd")
    if fault:
        rendered = helm(node, "template", "consentd", chart, "--kube-version", "1.34.4", *sets(*settings))
        objects = [o for o in yaml.safe_load_all(rendered) if o]
        for o in objects:
            if o["kind"] == "StatefulSet":
                del o["spec"]["volumeClaimTemplates"], o["spec"]["persistentVolumeClaimRetentionPolicy"]
                o["spec"]["template"]["spec"]["volumes"].append({"name": "ledger", "emptyDir": {}})
        apply(node, yaml.safe_dump_all(objects), [], NAMESPACE)
    else:
        helm(node, "install", "consentd", chart, *sets(*settings))
    name, address = wait("it is ready", 60, lambda: pod_of(node, "standalone"))
    code, said = consentd(node, *OPT_IN, "--addr", f"{address}:50052", "--token-file", path)
    assert code == 0, said
    kubectl(node, "delete", "pod", name)
    _, address = wait("it is ready again", 60, lambda: pod_of(node, "standalone"))
    code, said = consentd(node, "check", USER, BUSINESS, "marketing", "--form", "template", "--addr", f"{address}:50051")
    assert code == 0, f"the opt-in is lost: {said}"
    if fault:
        return "it was kept"
    file = os.stat(os.path.join(folder, "consentd.redb"))
    assert (file.st_uid, file.st_mode & 0o777) == (65532, 0o600), file
    return f"the new pod allows what the former one recorded; the file is {file.st_uid}:{file.st_gid} {file.st_mode & 0o777:o}"
