#!/usr/bin/env python3
"""Writes an OCI archive of consentd's image, byte for byte the same for the same input.

Called by deploy/image/build. The layout is described by the OCI image specification: a tar of blobs that
are named by their SHA-256, with an index.
"""
import argparse, gzip, hashlib, io, json, os, tarfile
from datetime import datetime, timezone

import inventory

# Nothing of a machine or a name service is in the image: the user is a number.
USER = 65532
TARGETS = {"amd64": "x86_64-unknown-linux-musl", "arm64": "aarch64-unknown-linux-musl"}
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(archive, name, data, mode, created):
    """Adds a file, or a folder where `data` is None, owned by root."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.mtime = mode, created
    if data is None:
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    else:
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))


def layer(files, created):
    """A layer as a tar: these files, by path, with the folders above them."""
    raw, folders = io.BytesIO(), set()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, (data, mode) in sorted(files.items()):
            parts = path.split("/")[:-1]
            for depth in range(1, len(parts) + 1):
                folder = "/".join(parts[:depth])
                if folder not in folders:
                    folders.add(folder)
                    add(archive, folder, None, 0o755, created)
            add(archive, path, data, mode, created)
    return raw.getvalue()


class Blobs(dict):
    """The blobs of an archive, by digest."""

    def put(self, data, media_type, **more):
        self[digest(data)] = data
        return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}

    def put_json(self, value, media_type, **more):
        return self.put(json.dumps(value, separators=(",", ":")).encode(), media_type, **more)


def image(blobs, arch, binary, options, annotations):
    """Puts one platform's image into the blobs, and returns its descriptor."""
    target = TARGETS[arch]
    with open(binary, "rb") as file:
        executable = file.read()
    with open(os.path.join(inventory.ROOT, "LICENSE"), "rb") as file:
        licence = file.read()
    documents = "usr/share/doc/consentd"
    files = {
        "consentd": (executable, 0o755),
        f"{documents}/LICENSE": (licence, 0o644),
        f"{documents}/THIRD-PARTY-LICENSES": (inventory.licences(target, options.musl_licence), 0o644),
        f"{documents}/sbom.cdx.json": (
            inventory.sbom(target, options.revision, options.created, options.rust), 0o644),
    }
    raw = layer(files, options.created)
    created = datetime.fromtimestamp(options.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = blobs.put_json({
        "created": created, "architecture": arch, "os": "linux",
        "config": {"User": f"{USER}:{USER}", "Entrypoint": ["/consentd"], "Cmd": ["serve"],
                   "StopSignal": "SIGTERM", "Labels": annotations},
        "rootfs": {"type": "layers", "diff_ids": [digest(raw)]},
        "history": [{"created": created, "created_by": "deploy/image/build"}],
    }, CONFIG)
    packed = blobs.put(gzip.compress(raw, 9, mtime=0), LAYER)
    print(f"{arch}: binary {len(executable):,} bytes, layer {packed['size']:,} bytes")
    return blobs.put_json(
        {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [packed],
         "annotations": annotations},
        MANIFEST, platform={"architecture": arch, "os": "linux"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", action="append", required=True, metavar="ARCH=PATH")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--created", type=int, required=True)
    parser.add_argument("--rust", required=True)
    parser.add_argument("--musl-licence", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    with open(os.path.join(inventory.ROOT, "Cargo.toml")) as file:
        version = file.read().split("[workspace.package]\nversion = \"")[1].split('"')[0]
    created = datetime.fromtimestamp(options.created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    prefix = "org.opencontainers.image."
    annotations = {
        prefix + "created": created,
        prefix + "description": "Answers, from memory, whether a business may message a WhatsApp user",
        prefix + "licenses": "Apache-2.0",
        prefix + "revision": options.revision,
        prefix + "title": "consentd",
        prefix + "version": version,
    }
    blobs = Blobs()
    images = [image(blobs, *binary.split("=", 1), options, annotations) for binary in options.binary]
    top = images[0]
    if len(images) > 1:
        top = blobs.put_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": images,
                              "annotations": annotations}, INDEX)
    named = {**top, "annotations": {prefix + "ref.name": version,
                                    "io.containerd.image.name": f"localhost/consentd:{version}"}}
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [named]}
    with tarfile.open(options.out, "w", format=tarfile.USTAR_FORMAT) as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644, options.created)
        add(archive, "index.json", json.dumps(index, separators=(",", ":")).encode(), 0o644, options.created)
        for name, data in sorted(blobs.items()):
            add(archive, "blobs/" + name.replace(":", "/"), data, 0o644, options.created)
    print(f"{options.out}: {os.path.getsize(options.out):,} bytes, {top['digest']}")


if __name__ == "__main__":
    main()
