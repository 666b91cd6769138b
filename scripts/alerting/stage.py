"""A stage for one alert: a Prometheus with its rules, sidecars, a Redis, and the commands of its runbook."""
import hashlib, hmac, json, os, re, shutil, signal, socket, subprocess, time, urllib.error, urllib.request

REPOSITORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
with open(os.path.join(REPOSITORY, "deploy/prometheus/alerts.yaml")) as file:
    RULES = file.read()
LEDGER = "redis://127.0.0.1:6379"
SECRET = "the-app-secret-of-the-dashboard"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# What commands of the runbooks need, and a machine without a cluster or a second clock has not.
ELSEWHERE = ("kubectl", "chronyc", "timedatectl")


def shorter(rules):
    """The rules with shorter times, so that an alert takes seconds and not hours.

    `for` is divided by 60, and is a second at least and ten at most. A range such as `[5m]` is divided by 30, and
    is ten seconds at least, which hold ten samples. An expression that compares with a former day (`offset`) is left
    as it is, and so is every threshold.
    """
    def scaled(match, by, least, most):
        return max(least, min(most, int(match[1]) * UNITS[match[2]] // by))
    text = re.sub(r"(?m)^(?P<pad> +)for: (\d+)([smhd])$",
                  lambda m: f"{m['pad']}for: {max(1, min(10, int(m[2]) * UNITS[m[3]] // 60))}s", rules)
    parts = re.split(r"(?m)^(?=      - alert: )", text)
    return "".join(part if " offset " in part else
                   re.sub(r"\[(\d+)([smhd])\]", lambda m: f"[{scaled(m, 30, 10, 120)}s]", part) for part in parts)


class Stage:
    def __init__(self, alert, binary, prometheus, folder):
        self.alert, self.binary, self.tools, self.folder = alert, binary, prometheus, folder
        self.processes, self.cgroups = [], []
        self.fired = self.ended = self.cause = None
        self.commands, self.elsewhere, self.besides = [], [], set()
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("CONSENTD_")}
        tools = os.path.join(folder, "bin")
        os.makedirs(tools)
        os.symlink(binary, os.path.join(tools, "consentd"))
        self.environment["PATH"] = tools + ":" + os.environ["PATH"]
        with open(os.path.join(REPOSITORY, f"docs/runbooks/{alert}.md")) as page:
            self.page = page.read()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        for mounted, group in self.cgroups:
            self.run("umount", mounted)
            os.rmdir(group)

    # Files and processes.

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write(self, name, text):
        with open(self.path(name), "w") as file:
            file.write(text)
        os.chmod(self.path(name), 0o600)
        return name

    def read(self, name):
        with open(self.path(name), errors="replace") as file:
            return file.read()

    def spawn(self, name, *command, **environment):
        log = open(self.path(name + ".log"), "a")
        process = subprocess.Popen(command, cwd=self.folder, env={**self.environment, **environment}, stdout=log,
                                   stderr=log, stdin=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def stop(self, process, how=signal.SIGTERM):
        process.send_signal(how)
        process.wait(30)

    def run(self, *command, check=True):
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60,
                              stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def consentd(self, *words, check=True):
        return self.run("consentd", *words, check=check)

    def until(self, what, seconds, condition):
        """Waits for a condition, and returns what it gave."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {seconds} s")
            time.sleep(0.1)

    def cgroup(self):
        """A control group for one process, which finds it where a container finds its own."""
        mounted = "/sys/fs/cgroup/memory" if os.path.isdir("/sys/fs/cgroup/memory") else "/sys/fs/cgroup"
        group = os.path.join(mounted, f"consentd-alerts-{time.time_ns()}")
        os.mkdir(group)
        self.run("mount", "--bind", group, mounted)
        self.cgroups.append((mounted, group))
        return mounted

    # Redis.

    def redis(self, *settings, port=6379):
        """Starts a Redis with a configuration file, as one that an operator runs has. It keeps what it had."""
        folder = self.path(f"redis-{port}")
        if not os.path.exists(folder):
            os.makedirs(folder)
            lines = [f"port {port}", "bind 127.0.0.1", f"dir {folder}", 'save ""', "maxmemory-policy noeviction", *settings]
            if not any(line.startswith("appendonly") for line in settings):
                lines += ["appendonly yes", "appendfsync always"]
            self.write(f"redis-{port}.conf", "\n".join(lines) + "\n")
        process = self.spawn(f"redis-{port}", "redis-server", self.path(f"redis-{port}.conf"))
        self.until("Redis answers", 20, lambda: self.run("redis-cli", "-p", str(port), "ping", check=False) == "PONG\n")
        return process

    def redis_cli(self, *words, port=6379):
        return self.run("redis-cli", "-p", str(port), *words)

    def ledger(self, *settings):
        """A Redis with a ledger."""
        process = self.redis(*settings)
        self.consentd("init", "--ledger", LEDGER)
        return process

    def resp(self, *words):
        """Sends one command of any bytes to Redis, and returns its reply: bytes, or a list of them."""
        words = [word if isinstance(word, bytes) else word.encode() for word in words]
        with socket.create_connection(("127.0.0.1", 6379), 10) as connection:
            stream = connection.makefile("rwb")
            stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            stream.flush()
            return self.reply(stream)

    def reply(self, stream):
        kind, text = (line := stream.readline().rstrip(b"\r\n"))[:1], line[1:]
        if kind == b"$":
            return None if text == b"-1" else stream.read(int(text) + 2)[:-2]
        if kind == b"*":
            return [self.reply(stream) for _ in range(int(text))]
        assert kind in (b"+", b":"), line
        return text

    # Sidecars, and what asks them.

    def sidecar(self, *flags, name="consentd", admin=9464, listen="127.0.0.1:50051", ledger=LEDGER, before=(), ready=True,
                **environment):
        """Starts a sidecar, and waits until its table is current."""
        listening = ["--listen", listen] if listen else []
        process = self.spawn(name, *before, os.path.join(self.folder, "bin", "consentd"), "serve", "--ledger", ledger,
                             *listening, "--admin", f"127.0.0.1:{admin}", *flags, **environment)
        if ready:
            self.until("the sidecar is ready", 60, lambda: self.http(f"http://127.0.0.1:{admin}/readyz")[0] == 200)
        return process

    def recorder(self, *flags):
        """A process that records for the sidecar, at the address that `record` below asks."""
        return self.sidecar("--record", "127.0.0.1:50052", *flags, name="recorder", admin=9474, listen="127.0.0.1:50061")

    def opt_out(self, user, *flags, check=True):
        return self.consentd("record", "opt-out", user, "acme", "*", "--addr", "127.0.0.1:50052", *flags, check=check)

    def check(self, user="15550100001"):
        return self.consentd("check", user, "acme", "marketing", check=False)

    def http(self, url, body=None, headers=None):
        try:
            request = urllib.request.Request(url, body, headers or {})
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metrics(self, admin=9464):
        return self.http(f"http://127.0.0.1:{admin}/metrics")[1]

    def metric(self, name, admin=9464):
        found = re.search(rf"(?m)^{re.escape(name)} (\S+)$", self.metrics(admin))
        return float(found[1]) if found else None

    # Webhooks.

    def webhook_flags(self):
        self.write("consentd.toml", '[whatsapp.numbers]\n106540352242922 = "acme"\n')
        self.write("app-secret", SECRET + "\n")
        self.write("verify-token", "a-token-that-we-made-up\n")
        return ["--config", "consentd.toml", "--webhook", "127.0.0.1:8080", "--webhook-app-secret-file", "app-secret",
                "--webhook-verify-token-file", "verify-token"]

    def fixture(self, name):
        with open(os.path.join(REPOSITORY, f"tests/fixtures/whatsapp/{name}.json"), "rb") as file:
            return file.read()

    def post(self, body, secret=SECRET):
        signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Hub-Signature-256": "sha256=" + signature, "Content-Type": "application/json"}
        return self.http("http://127.0.0.1:8080/webhook", body, headers)[0]

    # Certificates.

    def certificate(self, name, days):
        """A CA, once, and a certificate of this machine with its key."""
        if not os.path.exists(self.path("ca.crt")):
            self.run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
                     "-subj", "/CN=try-ca", "-keyout", "ca.key", "-out", "ca.crt")
        self.run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=try",
                 "-keyout", name + ".key", "-out", name + ".csr")
        self.write("names", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.run("openssl", "x509", "-req", "-in", name + ".csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days",
                 str(days), "-out", name + ".crt", "-extfile", "names")

    # Prometheus.

    def watch(self, *admins, history=None):
        """Starts Prometheus with the shortened rules, and waits until each target was scraped a few times."""
        admins = admins or (9464,)
        data = self.path("data")
        if history:
            self.write("history.txt", history)
            self.run(os.path.join(self.tools, "promtool"), "tsdb", "create-blocks-from", "openmetrics", "history.txt", data)
        self.write("rules.yaml", shorter(RULES))
        targets = ", ".join(f'"127.0.0.1:{admin}"' for admin in admins)
        self.write("prometheus.yaml", "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n"
                   "rule_files: [rules.yaml]\nscrape_configs:\n  - job_name: consentd\n    static_configs: [{targets: ["
                   + targets + "]}]\n")
        self.spawn("prometheus", os.path.join(self.tools, "prometheus"), "--config.file", "prometheus.yaml",
                   "--storage.tsdb.path", data, "--storage.tsdb.retention.time", "60d", "--web.listen-address", "127.0.0.1:9090",
                   "--log.level", "warn")
        query = "http://127.0.0.1:9090/api/v1/query?query=min(count_over_time(up%7Bjob%3D%22consentd%22%7D%5B1m%5D))"
        def scraped():
            status, text = self.http(query)
            found = json.loads(text)["data"]["result"] if status == 200 else []
            return found and float(found[0]["value"][1]) >= 4
        self.until("Prometheus has scraped", 60, scraped)

    def firing(self):
        status, text = self.http("http://127.0.0.1:9090/api/v1/alerts")
        assert status == 200, text
        return {alert["labels"]["alertname"] for alert in json.loads(text)["data"]["alerts"] if alert["state"] == "firing"}

    def causes(self):
        """Says that what follows is the cause. The alert must not be firing yet."""
        assert self.alert not in self.firing(), "it fires without a cause"
        self.cause = time.monotonic()

    def causes_from_the_start(self):
        """Says that the cause is there before Prometheus is."""
        self.cause = time.monotonic()

    def fires(self, seconds=90, meanwhile=lambda: None):
        """Waits until the alert fires. Meanwhile something may be done again and again."""
        def is_firing():
            meanwhile()
            return self.alert in self.firing()
        self.until(f"{self.alert} fires", seconds, is_firing)
        self.fired = time.monotonic() - self.cause
        self.besides = self.firing() - {self.alert}

    def ends(self, seconds=180, meanwhile=lambda: None):
        """Waits until the alert does not fire any more, after what its runbook says was done."""
        mended = time.monotonic()
        def is_over():
            meanwhile()
            return self.alert not in self.firing()
        self.until(f"{self.alert} ends", seconds, is_over)
        self.ended = time.monotonic() - mended

    # The runbook.

    def look(self, *expected):
        """Runs the commands of "What to look at", and expects words in what they print or in the sidecar's log."""
        return self.follow("What to look at", expected)

    def do(self, *expected):
        """Runs the commands of "What to do"."""
        return self.follow("What to do", expected)

    def follow(self, heading, expected):
        part = self.page.split(f"## {heading}\n")[1].split("\n## ")[0]
        blocks = re.findall(r"```sh\n(.*?)```", part, re.S)
        lines = "".join(blocks).replace("\\\n", " ").splitlines()
        printed = []
        for line in filter(None, map(str.strip, lines)):
            if line.startswith(ELSEWHERE):
                self.elsewhere.append(line)
                continue
            done = subprocess.run(["bash", "-c", line], cwd=self.folder, env=self.environment, capture_output=True, text=True,
                                  timeout=60, stdin=subprocess.DEVNULL)
            said = done.stdout + done.stderr
            self.commands.append([line, done.returncode])
            printed.append(said)
            with open(self.path("transcript"), "a") as file:
                file.write(f"$ {line}\n{said}# exit code {done.returncode}\n\n")
            # 126 and 127 are a command that is not there, and a clap error shows how consentd is used.
            if done.returncode in (126, 127) or "Usage:" in said:
                raise AssertionError(f"{line}: {said}")
        text = "".join(printed) + self.read("consentd.log")
        for words in expected:
            assert words in text, f"{heading}: {words!r} is not in what its commands print, nor in the log"
        return text
