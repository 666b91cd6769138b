"""A Kubernetes node in namespaces of its own: containerd and a kubelet, and by choice etcd, an API server, the
scheduler and the controllers. Nothing of it is left on the machine once it has stopped."""
import contextlib, glob, json, os, shutil, subprocess, time

import images

HERE = os.path.dirname(os.path.abspath(__file__))
IP = "10.99.0.2"
NAME = "consentd-node"
CGROUPS = "/sys/fs/cgroup"
# Set by the kubelet for a whole machine, unless it finds them so.
SETTINGS = ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"]


def wait(what, seconds, condition, every=0.1):
    """The first true value of a condition, or an error that names what was waited for."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(every)


def machine():
    """What a node must leave as it was."""
    settings = {}
    for name in SETTINGS:
        with open("/proc/sys/" + name) as file:
            settings[name] = file.read().strip()
    with open("/proc/self/mounts") as file:
        mounts = sorted(file)
    return {"settings": settings, "mounts": mounts, "cgroups": glob.glob(f"{CGROUPS}/*/{NAME}"),
            "folders": [f for f in ("/var/lib/kubelet", "/var/lib/cni") if os.path.exists(f)]}


class Node:
    def __init__(self, programs, consentd, run, api=False):
        self.programs, self.run, self.api = programs, run, api
        # Of a node whose checks were killed.
        remove_cgroups()
        self.before = machine()
        os.makedirs(run)
        images.make(consentd, os.path.join(run, "images"))
        started = time.monotonic()
        environment = {**os.environ, "NODE_RUN": run, "NODE_BIN": programs, "NODE_NAME": NAME,
                       "NODE_IMAGES": os.path.join(run, "images"), "NODE_API": "yes" if api else ""}
        # It is killed with this process, however that ends, and then all that it has started.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork",
             "--kill-child", os.path.join(HERE, "inside")],
            env=environment, stdin=subprocess.DEVNULL, stdout=open(os.path.join(run, "inside.log"), "w"),
            stderr=subprocess.STDOUT, start_new_session=True)
        try:
            wait("a healthy kubelet", 120, self.is_healthy)
            with open(os.path.join(run, "log", "events"), "w") as file:
                self.background("ctr", "--namespace", "k8s.io", "events", output=file)
            if api:
                wait("a ready Node in the API", 60, lambda: "True" in self.kubectl(
                    "get", "node", "node", "-o", "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}", check=False))
                wait("the default service account", 60, lambda: self.kubectl("get", "serviceaccount", "default", check=False))
        except BaseException:
            self.stop(keep=True)
            raise
        self.seconds = time.monotonic() - started

    def is_healthy(self):
        if self.process.poll() is not None:
            logs = [os.path.join(self.run, "inside.log"), *glob.glob(os.path.join(self.run, "log", "*"))]
            tails = [f"{log}: " + "".join(open(log, errors="replace").readlines()[-3:]) for log in logs]
            raise AssertionError("the node has ended:\n" + "\n".join(tails))
        return os.path.exists(os.path.join(self.run, "pid")) and self.inside("curl", "-fs", "http://127.0.0.1:10248/healthz", check=False)

    @property
    def pid(self):
        """The number of the node's first process, on the machine."""
        with open(os.path.join(self.run, "pid")) as file:
            return file.read().strip()

    @property
    def config(self):
        return os.path.join(self.run, "kubeconfig")

    def enter(self, *command):
        """A command line that runs another one in the node's namespaces."""
        return ["nsenter", "--target", self.pid, "--mount", "--pid", "--net", "--uts", "--ipc", "--", *command]

    def inside(self, *command, check=True, any_code=False):
        """What a command prints in the node. Unless `check`, nothing where it fails."""
        done = subprocess.run(self.enter(*command), capture_output=True, text=True)
        if any_code:
            return done.stdout + done.stderr
        if done.returncode and check:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout if not done.returncode else ""

    def background(self, *command, output=subprocess.DEVNULL):
        """Starts a program that ends with the node, or when it is killed."""
        return subprocess.Popen(self.enter(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL)

    def kubectl(self, *arguments, **more):
        return self.inside(os.path.join(self.programs, "kubectl"), "--kubeconfig", self.config, *arguments, **more)

    # Pods

    def add(self, pod):
        """Makes a static pod, or replaces it."""
        path = os.path.join(self.run, "manifests", pod["metadata"]["name"] + ".json")
        with open(path + ".new", "w") as file:
            json.dump(pod, file)
        os.rename(path + ".new", path)

    def remove(self, name):
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.run, "manifests", name + ".json"))

    def pods(self):
        """All pods by name, as the kubelet reports them."""
        found = json.loads(self.inside("curl", "-fs", f"http://{IP}:10255/pods"))["items"] or []
        # The kubelet adds its node's name to that of a static pod.
        return {pod["metadata"]["name"].removesuffix("-node"): Pod(self, pod) for pod in found}

    def pod(self, name):
        return self.pods().get(name)

    def until(self, name, what, seconds, condition):
        """A pod once it meets a condition."""
        def look():
            pod = self.pod(name)
            with contextlib.suppress(KeyError):
                return pod and condition(pod) and pod
        try:
            return wait(f"{name}: {what}", seconds, look)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.pod(name) or 'it is not there'}") from None

    def processes(self):
        """How many containers run. The kubelet does not list a static pod any more whose file was removed, while its
        containers still end; that of its namespaces ends last."""
        tasks = self.inside("ctr", "--namespace", "k8s.io", "tasks", "list").splitlines()
        return sum(task.split()[2] != "STOPPED" for task in tasks[1:])

    def exit_code(self, identity):
        """The code that a container has ended with, also where its pod is not listed any more."""
        with open(os.path.join(self.run, "log", "events")) as file:
            for line in file:
                if " /tasks/exit " in line:
                    event = json.loads(line.split(" /tasks/exit ", 1)[1])
                    if event["container_id"] == event["id"] == identity:
                        return event.get("exit_status", 0)
        raise AssertionError("nothing has told its exit code")

    def until_gone(self, seconds=60):
        """Waits until no pod runs."""
        wait("all pods are gone", seconds, lambda: not self.pods() and not self.processes())

    def log(self, name, container):
        """An open log of a pod's container. It can be read to its end, also when the pod is gone."""
        def find():
            found = glob.glob(os.path.join(self.run, "pods", f"*_{name}-node_*", container, "*.log")) or \
                glob.glob(os.path.join(self.run, "pods", f"*_{name}_*", container, "*.log"))
            return found and Log(max(found))
        return wait(f"a log of {name}/{container}", 30, find)

    def stop(self, keep=False):
        """Ends the node and removes what it has made. Returns what it has left, which is nothing."""
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            pid = self.pid
            wait("the node's processes are gone", 20, lambda: not os.path.exists(f"/proc/{pid}"))
        wait("the node's cgroups are gone", 20, remove_cgroups)
        for folder in {"/var/lib/kubelet", "/var/lib/cni"} - set(self.before["folders"]):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        if not keep:
            shutil.rmtree(self.run)
        after = machine()
        return [key for key in after if after[key] != self.before[key]]


def remove_cgroups():
    for top in glob.glob(f"{CGROUPS}/*/{NAME}"):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return not glob.glob(f"{CGROUPS}/*/{NAME}")


class Pod:
    """A pod's status."""

    def __init__(self, node, pod):
        self.node, self.json = node, pod
        self.phase = pod["status"].get("phase")
        statuses = pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", [])
        self.containers = {status["name"]: status for status in statuses}

    def state(self, container):
        (name,) = self.containers[container]["state"]
        return name

    def runs(self, container):
        return self.state(container) == "running"

    def restarts(self, container):
        return self.containers[container]["restartCount"]

    def identity(self, container):
        """A container's name in containerd."""
        return self.containers[container]["containerID"].removeprefix("containerd://")

    def pid(self, container):
        """The number of a container's first process, in the node."""
        identity = self.identity(container)
        for line in self.node.inside("ctr", "--namespace", "k8s.io", "tasks", "list").splitlines():
            if line.startswith(identity):
                return line.split()[1]
        raise AssertionError(f"{container} has no process")

    def exec(self, container, *command):
        """The exit code and the output of a command in a container, as `kubectl exec` has it."""
        identity = self.identity(container)
        done = subprocess.run(
            self.node.enter("ctr", "--namespace", "k8s.io", "tasks", "exec", "--exec-id", f"check-{time.monotonic_ns()}", identity, *command),
            capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def cgroup(self, container, controller):
        """The folder of a container's cgroup."""
        for line in self.node.inside("cat", f"/proc/{self.pid(container)}/cgroup").splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                return os.path.join(CGROUPS, controller, path.lstrip("/"))
        raise AssertionError(f"no {controller} cgroup of {container}")

    def __str__(self):
        about = [f"{name} {json.dumps(status['state'])} restarts {status['restartCount']}" for name, status in self.containers.items()]
        return f"phase {self.phase}; " + "; ".join(about)


class Log:
    """Lines of a container, with the time at which containerd read each, in seconds of its day."""

    def __init__(self, path):
        self.file = open(path, errors="replace")

    def lines(self):
        self.file.seek(0)
        found = []
        for line in self.file.read().splitlines():
            stamp, _, _, text = line.split(" ", 3)
            hours, minutes, seconds = stamp.split("T")[1].removesuffix("Z").split("+")[0].split(":")
            found.append((int(hours) * 3600 + int(minutes) * 60 + float(seconds), text))
        return found

    def text(self):
        return "\n".join(text for _, text in self.lines())

    def checks(self):
        """The time, the exit code and the words of each check that an app has made."""
        found = [(at, *text.split(" ", 2)[1:]) for at, text in self.lines() if text.startswith("check ")]
        return [(at, int(code), words) for at, code, words in found]
