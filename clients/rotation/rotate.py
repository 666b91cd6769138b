"""Serves by TLS, renews the certificate under load, and counts calls that were not answered; called by run."""
import argparse, json, os, re, signal, subprocess, sys, threading, time, urllib.request

parser = argparse.ArgumentParser()
for flag in ("--seconds", "--binary", "--folder", "--grpcurl", "--go", "--node"):
    parser.add_argument(flag, required=True)
parser.add_argument("--fault", action="store_true")
options = parser.parse_args()
HERE = os.path.dirname(os.path.abspath(__file__))
# A rotation is to be taken before the next one comes: files are read every five seconds, or at SIGHUP.
EVERY_SECONDS = 3
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def path(*parts):
    return os.path.join(options.folder, *parts)


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], cwd=options.folder, check=True, capture_output=True)


def issue(ca, name, names, folder):
    """A certificate of this CA and its key, as tls.crt and tls.key in a folder of their own."""
    os.makedirs(path(folder))
    with open(path("names"), "w") as file:
        file.write(f"subjectAltName={names}\n")
    openssl("req", *EC, "-subj", f"/CN={name}", "-keyout", f"{folder}/tls.key", "-out", "request")
    openssl("x509", "-req", "-in", "request", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "2",
            "-out", f"{folder}/tls.crt", "-extfile", "names")


def install(folder):
    """Lets the link lead to another folder, at one moment, as a kubelet does."""
    os.symlink(folder, path("next"))
    os.rename(path("next"), path("current"))


def repeat(command, is_answered, end, counts):
    """Runs a command that makes one connection, again and again."""
    while time.time() < end:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
        said = done.stdout + done.stderr
        counts["asked"] += 1
        if done.returncode or not is_answered(said):
            why = said.strip().split("\n")[-1][:200]
            counts["failures"][why] = counts["failures"].get(why, 0) + 1
        found = re.search(r"CN ?= ?(server-\d+)", said)
        if found:
            counts.setdefault("seen", set()).add(found[1])


def metrics(admin):
    with urllib.request.urlopen(f"http://{admin}/metrics", timeout=20) as answer:
        return dict(re.findall(r"(?m)^([^#\s]+) (\S+)$", answer.read().decode()))


for ca in ("servers", "clients"):
    openssl("req", "-x509", *EC, "-days", "2", "-subj", f"/CN={ca}", "-keyout", f"{ca}.key", "-out", f"{ca}.crt")
issue("clients", "sender", "DNS:sender.internal", "client")
issue("servers", "server-0", "DNS:localhost,IP:127.0.0.1", "server-0")
install("server-0")
log = open(path("log"), "w+")
sidecar = subprocess.Popen(
    [options.binary, "serve", "--ledger", "file:" + path("ledger.redb"), "--new", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
     "--tls-cert-file", path("current/tls.crt"), "--tls-key-file", path("current/tls.key"), "--tls-client-ca-file", path("clients.crt"),
     "--tls-listeners", "listen", "--max-connection-age", "2s", "--max-staleness", "60s"],
    stdout=log, stderr=log, stdin=subprocess.DEVNULL, env={k: v for k, v in os.environ.items() if not k.startswith("CONSENTD_")})
try:
    deadline, served = time.time() + 60, None
    while not served:
        assert time.time() < deadline and sidecar.poll() is None, open(path("log")).read()
        time.sleep(0.1)
        served = re.search(r'"grpc":"([^"]+)".*"admin":"([^"]+)"', open(path("log")).read())
    address, admin = served[1], served[2]
    mine = [path("servers.crt"), path("client/tls.crt"), path("client/tls.key")]
    end = time.time() + float(options.seconds)
    clients = {"Go": [options.go, address], "Node": ["node", os.path.join(HERE, "ask.mjs"), options.node, address],
               "Python": [sys.executable, os.path.join(HERE, "ask.py"), address]}
    running = {name: subprocess.Popen([*command, *mine, str(end)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
               for name, command in clients.items()}
    question = '{"user_id":"15550100001","business_id":"acme","category":"marketing"}'
    single = {
        "openssl": (["openssl", "s_client", "-connect", address, "-CAfile", mine[0], "-cert", mine[1], "-key", mine[2], "-verify_ip",
                     "127.0.0.1", "-verify_return_error", "-alpn", "h2"], lambda said: "Verification: OK" in said),
        "grpcurl": ([options.grpcurl, "-cacert", mine[0], "-cert", mine[1], "-key", mine[2], "-d", question, address,
                     "consent.v1.ConsentService/CanSend"], lambda said: "NO_CONSENT" in said)}
    counts = {name: {"asked": 0, "failures": {}} for name in single}
    threads = [threading.Thread(target=repeat, args=(*single[name], end, counts[name])) for name in single]
    for thread in threads:
        thread.start()
    rotations = 0
    while time.time() < end - EVERY_SECONDS:
        time.sleep(EVERY_SECONDS)
        rotations += 1
        issue("clients" if options.fault else "servers", f"server-{rotations}", "DNS:localhost,IP:127.0.0.1", f"server-{rotations}")
        install(f"server-{rotations}")
        sidecar.send_signal(signal.SIGHUP)
    for thread in threads:
        thread.join()
    for name, process in running.items():
        printed, said = process.communicate(timeout=120)
        counts[name] = json.loads(printed) if printed else {"asked": 0, "failures": {said.strip()[-300:]: 1}}
    found = metrics(admin)
finally:
    sidecar.terminate()
    sidecar.wait(30)

taken = int(found['consent_tls_reloads_total{outcome="done"}'])
refused = int(found['consent_refused_total{limit="tls"}'])
print(f"{rotations} new certificates in {options.seconds} s, {taken} of them taken into use, and {len(counts['openssl'].get('seen', []))} certificates "
      f"seen by openssl; {refused} handshakes failed, by the sidecar's count.\n")
print("| asked by | calls | not answered |\n|---|---|---|")
for name, count in counts.items():
    print(f"| {name} | {count['asked']} | {sum(count['failures'].values())} {'; '.join(count['failures'])} |")
is_well = taken >= rotations - 1 > 0 and refused == 0 and all(c["asked"] > 0 and not c["failures"] for c in counts.values())
sys.exit(0 if is_well else 1)
