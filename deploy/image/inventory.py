"""What is in the binary: its crates from `cargo metadata`, as a CycloneDX SBOM and as licence texts.

cargo-cyclonedx and cargo-about do the same, but have to be compiled first, for minutes.
"""
import functools, glob, json, os, re, subprocess, uuid
from datetime import datetime, timezone

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Dependencies that rustc and the C library add to those of Cargo.lock.
MUSL_VERSION = "1.2.5"


@functools.cache
def crates(target):
    """The packages that the binary is made of for a target, sorted, and the edges between them.

    Packages that only tests or build scripts use are not in the binary.
    """
    metadata = json.loads(subprocess.check_output(
        ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", target], cwd=ROOT))
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    edges, open_ids = {}, [metadata["resolve"]["root"]]
    while open_ids:
        crate = open_ids.pop()
        if crate in edges:
            continue
        normal = [d["pkg"] for d in nodes[crate]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
        # A procedural macro runs in the compiler, and so does what it needs.
        edges[crate] = [d for d in normal if not is_macro(packages[d])]
        open_ids += edges[crate]
    found = sorted((packages[crate] for crate in edges), key=lambda p: (p["name"], p["version"]))
    return found, {purl(packages[c]): sorted(purl(packages[d]) for d in to) for c, to in edges.items()}


def is_macro(package):
    return any("proc-macro" in target["kind"] for target in package["targets"])


def purl(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def checksums():
    """SHA-256 of each package's archive by name and version, from Cargo.lock."""
    with open(os.path.join(ROOT, "Cargo.lock")) as file:
        blocks = file.read().split("[[package]]")[1:]
    fields = [dict(re.findall(r'^(name|version|checksum) = "(.*)"$', block, re.M)) for block in blocks]
    return {(f["name"], f["version"]): f["checksum"] for f in fields if "checksum" in f}


def sbom(target, revision, created, rust):
    """A CycloneDX document, the same for the same commit."""
    packages, edges = crates(target)
    hashes = checksums()
    components = []
    for package in packages:
        component = {"type": "library", "bom-ref": purl(package), "name": package["name"],
                     "version": package["version"], "purl": purl(package)}
        if package["license"]:
            component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        digest = hashes.get((package["name"], package["version"]))
        if digest:
            component["hashes"] = [{"alg": "SHA-256", "content": digest}]
        components.append(component)
    root = next(c for c in components if c["name"] == "consentd")
    components.remove(root)
    root["type"] = "application"
    components.append({"type": "library", "bom-ref": "rust-std", "name": "rust-std", "version": rust,
                       "licenses": [{"expression": "MIT OR Apache-2.0"}]})
    components.append({"type": "library", "bom-ref": "musl", "name": "musl", "version": MUSL_VERSION,
                       "licenses": [{"license": {"id": "MIT"}}]})
    edges = {**edges, root["bom-ref"]: edges[root["bom-ref"]] + ["musl", "rust-std"]}
    document = {
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, f"consentd:{revision}:{target}").urn,
        "metadata": {"timestamp": datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                     "component": root},
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": to} for ref, to in sorted(edges.items())],
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def licences(target, musl_licence):
    """The licence texts of everything in the binary. Each distinct text is there once."""
    texts, missing = {}, []
    with open(os.path.join(ROOT, "LICENSE")) as file:
        apache = file.read()
    for package in crates(target)[0]:
        name = f"{package['name']} {package['version']} ({package['license']})"
        folder = os.path.dirname(package["manifest_path"])
        files = sorted(f for f in glob.glob(os.path.join(folder, "*"))
                       if re.match(r"(?i)(licen[cs]e|copying|notice|unlicense|copyright)", os.path.basename(f))
                       and os.path.isfile(f))
        found = []
        for path in files:
            with open(path, encoding="utf-8", errors="replace") as file:
                found.append(file.read().replace("\r\n", "\n").strip())
        if not found and "Apache-2.0" in (package["license"] or ""):
            found = [apache.strip()]
        if not found and package["license"] == "MIT":
            found = [MIT.format(holders=", ".join(package["authors"]) or f"the authors of {package['name']}")]
        if not found:
            missing.append(name)
        for text in found:
            texts.setdefault(text, []).append(name)
    if missing:
        raise SystemExit(f"no licence text was found for {', '.join(missing)}")
    with open(musl_licence) as file:
        texts.setdefault(file.read().strip(), []).append(f"musl {MUSL_VERSION} (MIT)")
    texts.setdefault(apache.strip(), []).append("Rust's standard library (MIT OR Apache-2.0)")
    parts = [f"{chr(10).join(names)}\n\n{text}\n" for text, names in
             sorted(texts.items(), key=lambda item: item[1])]
    return ("What consentd is made of, with the licence texts of each.\n\n" +
            f"\n{'-' * 78}\n".join(parts)).encode()


MIT = """MIT License

Copyright (c) {holders}

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without
limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
Software, and to permit persons to whom the Software is furnished to do so, subject to the following
conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions
of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
DEALINGS IN THE SOFTWARE."""
