"""The images of the node beside consentd's own, as OCI archives: the one that holds a pod's namespaces, and apps that ask."""
import gzip, io, json, os, sys, tarfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "image"))
import oci

CHECK = "consentd check 15550123456 acme marketing --timeout 1s"
# What a pod's app does, by the tag of its image. Each line that is printed gets the time of containerd's log.
APPS = {
    # Asks until it was told to end, and for five more seconds. `consentd check` ends with 1 for a denial, and
    # with 2 where it got no answer.
    "asks": f"""
        echo "user $(id -u) groups $(id -G) socket $(stat -c '%u:%g %a' /run/consentd/consentd.sock) on $(stat -f -c %T /run/consentd)"
        end=0
        trap 'echo TERM; end=$(($(date +%s) + 5))' TERM
        while [ $end = 0 ] || [ $(date +%s) -lt $end ]; do
            said=$({CHECK} 2>&1); echo "check $? $said" | tr '\\n' ' '; echo
            sleep 0.1
        done""",
    # Asks once, and ends well.
    "ends": f"said=$({CHECK} 2>&1); echo check $? $said; sleep 1; exit 0",
    # Ends with another code.
    "fails": "sleep 1; exit 3",
    # Does not end when it is told to.
    "stays": "trap '' TERM; while :; do sleep 1; done",
    # Waits for what the checks run in it.
    "waits": "trap 'exit 0' TERM; while :; do sleep 1; done",
    # Asks 2,000 times a second, evenly.
    "paces": """
        trap 'exit 0' TERM
        consentd bench load --rate 2000 --threads 1 --warm-up 2s --duration 20s --json 2>&1
        while :; do sleep 1; done""",
    # Keeps more connections busy than the sidecar takes.
    "floods": """
        trap 'exit 0' TERM
        while :; do consentd bench load --connections 48 --in-flight 64 --threads 2 --warm-up 0s --duration 20s 2>&1; done""",
}


def binary(archive):
    """The executable in consentd's image."""
    with tarfile.open(archive) as outer:
        def blob(descriptor):
            return outer.extractfile("blobs/" + descriptor["digest"].replace(":", "/")).read()
        manifest = json.loads(blob(json.load(outer.extractfile("index.json"))["manifests"][0]))
        if "manifests" in manifest:
            manifest = json.loads(blob(next(m for m in manifest["manifests"] if m["platform"]["architecture"] == "amd64")))
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob(manifest["layers"][0])))) as layer:
            return layer.extractfile("consentd").read()


def write(folder, name, tag, files, entrypoint):
    """An archive of one layer: the files and busybox, whose shell finds its commands without links."""
    with open("/usr/bin/busybox", "rb") as file:
        files = {**files, "bin/busybox": (file.read(), 0o755)}
    raw = oci.layer(files, 0)
    blobs = oci.Blobs()
    config = blobs.put_json({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [oci.digest(raw)]},
        "config": {"Entrypoint": entrypoint, "User": "65534:65534", "Env": ["PATH=/bin"]}}, oci.CONFIG)
    layer = blobs.put(gzip.compress(raw, 1, mtime=0), oci.LAYER)
    manifest = blobs.put_json({"schemaVersion": 2, "mediaType": oci.MANIFEST, "config": config, "layers": [layer]}, oci.MANIFEST)
    manifest["annotations"] = {"io.containerd.image.name": f"localhost/{name}:{tag}", "org.opencontainers.image.ref.name": tag}
    with tarfile.open(os.path.join(folder, f"{name}-{tag}.tar"), "w") as archive:
        oci.add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644, 0)
        index = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [manifest]}
        oci.add(archive, "index.json", json.dumps(index).encode(), 0o644, 0)
        for digest, data in blobs.items():
            oci.add(archive, "blobs/" + digest.replace(":", "/"), data, 0o644, 0)


def make(consentd, folder):
    """Puts all images of the node into a folder, consentd's own by a link."""
    os.makedirs(folder)
    os.link(consentd, os.path.join(folder, "consentd.tar")) if os.stat(consentd).st_dev == os.stat(folder).st_dev \
        else os.symlink(os.path.abspath(consentd), os.path.join(folder, "consentd.tar"))
    write(folder, "pause", "1", {}, ["/bin/busybox", "sleep", "2147483647"])
    executable = binary(consentd)
    for tag, script in APPS.items():
        files = {"bin/consentd": (executable, 0o755), "app": (script.encode(), 0o644)}
        write(folder, "app", tag, files, ["/bin/busybox", "sh", "/app"])
