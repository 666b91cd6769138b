"""What must hold on a kubelet, each as a function that returns what it saw, or fails.

Each has a fault: a change to what it looks at with which it must fail, so that it is known to be able to.
"""
import json, os, re, statistics, time

import pods
from node import IP, wait

CHECKS = []


def check(claim, fault):
    def add(function):
        CHECKS.append((function.__name__, claim, fault, function))
        return function
    return add


def denies(log):
    """Whether an app has been answered."""
    return any(code == 1 and "NO_CONSENT" in words for _, code, words in log.checks())


@check("The app starts only once the table is loaded", "waitForTable=false")
def start(node, fault):
    pod = pods.pod("start", "asks", *(["consentd.sidecar.waitForTable=false"] if fault else []), ledger=f"redis://{IP}:6380")
    node.add(pod)
    node.until("start", "the sidecar runs", 30, lambda p: p.runs("consentd"))
    # Without a Redis it cannot load its table.
    for _ in range(40):
        seen = node.pod("start")
        assert seen.state("app") == "waiting", f"the app has started: {seen}"
        time.sleep(0.1)
    before = time.time() % 86400
    node.redis(6380)
    log = node.log("start", "app")
    wait("the app is answered", 60, lambda: denies(log))
    (at, code, words), *_ = log.checks()
    assert code == 1 and "NO_CONSENT" in words, f"its first check was not answered by a loaded table: {words}"
    return f"waited without Redis for 4 s; its first check, {at - before:.1f} s after Redis came, was denied as NO_CONSENT"


@check("A Job's pod ends when its app does, with its result", "ordinary containers")
def job(node, fault):
    seen = []
    for app, expected in [("ends", ("Succeeded", 0)), ("fails", ("Failed", 3))]:
        pod = pods.pod("job-" + app, app, kind="Job")
        name = pod["metadata"]["name"]
        if fault:
            pod = pods.with_ordinary_containers(pod)
            pod["spec"]["restartPolicy"] = "Never"
        node.add(pod)
        found, last = {}, None

        def ended():
            nonlocal last
            last = node.pod(name) or last
            for container, status in (last.containers if last else {}).items():
                if "terminated" in status["state"]:
                    found[container] = status["state"]["terminated"]["exitCode"]
            return last and last.phase in ("Succeeded", "Failed")
        wait(f"{name} ends", 40, ended, every=0.05)
        assert (last.phase, found["app"]) == expected, f"{last}"
        seen.append(f"exit code {found['app']} made it {last.phase}, the sidecar's was {found.get('consentd')}")
        assert found.get("consentd") == 0, f"the sidecar did not end well: {last}"
        node.remove(name)
    return "; ".join(seen)


@check("At deletion the app's checks are answered until it is gone", "ordinary containers")
def deletion(node, fault):
    pod = pods.pod("deletion", "asks")
    node.add(pods.with_ordinary_containers(pod) if fault else pod)
    log = node.log("deletion", "app")
    wait("the app is answered", 60, lambda: denies(log))
    node.remove("deletion")
    node.until_gone()
    told = next((at for at, text in log.lines() if text == "TERM"), None)
    assert told, "the app was not told to end"
    after = [code for at, code, _ in log.checks() if at > told]
    unanswered = sum(code not in (0, 1) for code in after)
    assert len(after) >= 20, f"only {len(after)} checks after SIGTERM"
    assert not unanswered, f"{unanswered} of {len(after)} checks after SIGTERM were not answered"
    return f"{len(after)} checks in the 5 s after its SIGTERM, {unanswered} unanswered"


@check("The socket in memory works across users by fsGroup", "security.fsGroup=null")
def socket(node, fault):
    node.add(pods.pod("socket", "asks", *(["consentd.security.fsGroup=null"] if fault else [])))
    log = node.log("socket", "app")
    wait("a check", 60, log.checks)
    about = next(text for _, text in log.lines() if text.startswith("user "))
    seen = re.fullmatch(r"user (\d+) groups ([\d ]+) socket (\d+:\d+) (\d+) on (\w+)", about)
    assert seen, about
    wait(f"an answer ({about}; {log.checks()[-1]})", 10, lambda: denies(log))
    assert seen[1] != "65532" and "65532" in seen[2].split() and seen[5] == "tmpfs", about
    return about


@check("The root is read-only, and nothing is privileged", "readOnlyRootFilesystem: false")
def root(node, fault):
    pod = pods.pod("root", "waits")
    if fault:
        pods.sidecar(pod)["securityContext"]["readOnlyRootFilesystem"] = False
    node.add(pod)
    pid = node.until("root", "runs", 60, lambda p: p.runs("app")).pid("consentd")
    status = dict(line.split(":\t", 1) for line in node.inside("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line)
    mounts = [line.split() for line in node.inside("cat", f"/proc/{pid}/mountinfo").splitlines()]
    options = next(mount[5] for mount in mounts if mount[4] == "/").split(",")
    assert "ro" in options, f"its root is mounted {options}"
    assert not node.inside("touch", f"/proc/{pid}/root/file", check=False) and not node.inside(
        "ls", f"/proc/{pid}/root/file", check=False), "root of the node wrote to its root"
    assert status["Uid"].split() == ["65532"] * 4, status["Uid"]
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0, status["CapEff"]
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
    return "mounted ro; user 65532, no capabilities, no new privileges, seccomp filter"


@check("Killed by SIGKILL it is back on the same socket, and the app goes on", "ordinary containers, never restarted")
def killed(node, fault):
    pod = pods.pod("killed", "asks")
    if fault:
        pod = pods.with_ordinary_containers(pod)
        pod["spec"]["restartPolicy"] = "Never"
    node.add(pod)
    log = node.log("killed", "app")
    wait("the app is answered", 60, lambda: denies(log))
    node.inside("kill", "-KILL", node.pod("killed").pid("consentd"))
    at = time.time() % 86400
    back = wait("an answer after the kill", 30, lambda: [
        t for t, code, _ in log.checks() if t > at + 0.3 and code == 1])
    lost = [words for t, code, words in log.checks() if code not in (0, 1)]
    seen = node.until("killed", "one restart", 10, lambda p: p.restarts("consentd") == 1)
    assert seen.restarts("app") == 0, f"the app was restarted: {seen}"
    return f"answers again after {back[0] - at:.1f} s; {len(lost)} checks failed meanwhile, each with exit code 2; the app was not restarted"


@check("A sidecar that hangs is restarted", "no liveness probe")
def hung(node, fault):
    pod = pods.pod("hung", "asks")
    if fault:
        del pods.sidecar(pod)["livenessProbe"]
    node.add(pod)
    log = node.log("hung", "app")
    wait("the app is answered", 60, lambda: denies(log))
    node.inside("kill", "-STOP", node.pod("hung").pid("consentd"))
    begun = time.monotonic()
    node.until("hung", "one restart", 40, lambda p: p.restarts("consentd") == 1)
    took = time.monotonic() - begun
    count = len(log.checks())
    wait("an answer", 20, lambda: any(code == 1 for _, code, _ in log.checks()[count:]))
    return f"restarted {took:.0f} s after SIGSTOP"


@check("An app that outlives the grace period leaves the sidecar time for its snapshot", "the sidecar hangs")
def outlived(node, fault):
    node.add(pods.pod("outlived", "stays", "consentd.sidecar.appSeconds=1", "consentd.sidecar.drainSeconds=1"))
    log = node.log("outlived", "consentd")
    seen = node.until("outlived", "runs", 60, lambda p: p.runs("app"))
    if fault:
        node.inside("kill", "-STOP", seen.pid("consentd"))
    identity = seen.identity("consentd")
    node.remove("outlived")
    node.until_gone()
    text, code = log.text(), node.exit_code(identity)
    assert code == 0, f"it ended with {code}"
    assert "draining" in text, f"it did not drain: {text[-500:]}"
    return "the sidecar, told to end with 2 s left, drained and ended with 0"


@check("Probes are answered at the connection cap under load", "a liveness probe that asks as the app does")
def probes(node, fault):
    pod = pods.pod("probes", "floods", "consentd.pairs=100000")
    if fault:
        probe = pods.sidecar(pod)["livenessProbe"]
        del probe["httpGet"]
        probe["exec"] = {"command": ["/consentd", "status"]}
    node.add(pod)
    address = node.until("probes", "runs", 60, lambda p: p.runs("app")).json["status"]["podIP"]

    def metric(name):
        text = node.inside("curl", "-fsm", "5", f"http://{address}:9464/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? ([\d.e+]+)$", text, re.M))
    wait("as many connections as it takes", 30, lambda: metric("consent_connections") >= 32)
    times, least, decided, begun = [], 1000, metric("consent_decisions_total"), time.monotonic()
    while time.monotonic() < begun + 25:
        for path in ("readyz", "livez"):
            code, took = node.inside("curl", "-sm", "5", "-o", "/dev/null", "-w", "%{http_code} %{time_total}",
                                     f"http://{address}:9464/{path}", check=False).split() or ("nothing", 5)
            assert code == "200", f"/{path} answered {code}"
            times.append(float(took))
        seen = node.pod("probes")
        assert seen.restarts("consentd") == 0, f"it was restarted: {seen}"
        time.sleep(0.2)
    decided = (metric("consent_decisions_total") - decided) / (time.monotonic() - begun)
    healthy, said = node.pod("probes").exec("consentd", "/consentd", "healthcheck")
    assert healthy == 0, f"consentd healthcheck: {said}"
    return (f"{len(times)} of {len(times)} answered in {statistics.median(times) * 1000:.0f} ms (median), "
            f"{max(times) * 1000:.0f} ms (most), at 32 connections and {decided:,.0f} checks/s; healthcheck too; no restart")


@check("The memory limit that the chart computed holds", "a limit for a tenth of the pairs")
def memory(node, fault):
    count = 5_000_000
    sized = count // 10 if fault else count
    pod = pods.pod("memory", "floods", f"consentd.pairs={sized}", f"consentd.sidecar.extraArgs={{--synthetic={count}}}",
                   ledger=f"{pods.LEDGER}/1")
    limit = int(pods.sidecar(pod)["resources"]["limits"]["memory"].removesuffix("Mi"))
    node.add(pod)
    seen = node.until("memory", "the app runs", 60, lambda p: p.runs("app") or p.restarts("consentd"))
    assert not seen.restarts("consentd"), f"limit {limit} MiB: {seen.containers['consentd'].get('lastState')}"
    address = seen.json["status"]["podIP"]
    text = node.inside("curl", "-fs", f"http://{address}:9464/metrics")
    assert float(re.search(r"^consent_pairs ([\d.e+]+)$", text, re.M)[1]) == count
    folder = seen.cgroup("consentd", "memory")
    time.sleep(20)
    with open(f"{folder}/memory.max_usage_in_bytes") as file:
        peak = int(file.read()) / 2**20
    with open(f"{folder}/memory.failcnt") as file:
        refused = int(file.read())
    seen = node.pod("memory")
    assert seen.restarts("consentd") == 0 and peak < limit, f"{peak:.0f} of {limit} MiB: {seen}"
    return f"{count:,} pairs: {peak:.0f} MiB at most of {limit}, under load; the limit was met {refused} times"


@check("A CPU limit of 100m is enough for 2,000 checks a second", "a limit of 40m")
def cpu(node, fault):
    pod = pods.pod("cpu", "paces", "consentd.pairs=100000")
    pods.sidecar(pod)["resources"]["limits"]["cpu"] = "40m" if fault else "100m"
    pods.sidecar(pod)["resources"]["requests"]["cpu"] = "40m"
    node.add(pod)
    log = node.log("cpu", "app")
    seen = node.until("cpu", "the app runs", 60, lambda p: p.runs("app"))
    folder = seen.cgroup("consentd", "cpu")

    def throttled():
        with open(f"{folder}/cpu.stat") as file:
            return dict(line.split() for line in file)
    before = throttled()
    report = json.loads(wait("a report", 60, lambda: [text for _, text in log.lines() if text.startswith("{")])[0])
    after = throttled()
    periods, met, stopped = (int(after[key]) - int(before[key]) for key in ("nr_periods", "nr_throttled", "throttled_time"))
    share = stopped / 1e9 / 22
    said = (f"throttled in {met} of {periods} periods, for {share:.1%} of the time; p99 {report['latency_us']['p99'] / 1000:.1f} ms, "
            f"on a machine with a load of {os.getloadavg()[0]:.0f}")
    # What waits for the next period is 1 % of the checks at most, so that the p99 does not.
    assert share < 0.01, said
    return said
