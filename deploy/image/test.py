#!/usr/bin/env python3
"""Tests of the image's archive, with any file in place of the binary. The suite runs them."""
import gzip, hashlib, io, json, os, subprocess, sys, tarfile, tempfile, unittest

HERE = os.path.dirname(os.path.abspath(__file__))
CREATED = 1_700_000_000


def build(folder, name, *archs):
    binary, licence = os.path.join(folder, "binary"), os.path.join(folder, "licence")
    for path, content in [(binary, b"\x7fELF and so on"), (licence, b"musl's licence")]:
        with open(path, "wb") as file:
            file.write(content)
    out = os.path.join(folder, name)
    binaries = [word for arch in archs for word in ("--binary", f"{arch}={binary}")]
    subprocess.run([sys.executable, os.path.join(HERE, "oci.py"), *binaries, "--revision", "abc", "--created",
                    str(CREATED), "--rust", "1.2.3", "--musl-licence", licence, "--out", out],
                   check=True, stdout=subprocess.DEVNULL)
    with open(out, "rb") as file:
        return file.read()


class Archive:
    def __init__(self, data):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            self.files = {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}

    def blob(self, descriptor):
        data = self.files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
        assert len(data) == descriptor["size"]
        return data

    def json(self, descriptor):
        return json.loads(self.blob(descriptor))

    def top(self):
        (top,) = json.loads(self.files["index.json"])["manifests"]
        return top


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.data = build(cls.folder.name, "one.tar", "amd64")
        cls.archive = Archive(cls.data)
        cls.manifest = cls.archive.json(cls.archive.top())
        (layer,) = cls.manifest["layers"]
        cls.raw = gzip.decompress(cls.archive.blob(layer))
        with tarfile.open(fileobj=io.BytesIO(cls.raw)) as layer:
            cls.members = layer.getmembers()
            cls.content = {m.name: layer.extractfile(m).read() for m in cls.members if m.isfile()}

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_the_same_input_makes_the_same_archive(self):
        self.assertEqual(self.data, build(self.folder.name, "two.tar", "amd64"))

    def test_it_runs_consentd_as_a_user_without_a_name(self):
        config = self.archive.json(self.manifest["config"])
        self.assertEqual((config["architecture"], config["os"]), ("amd64", "linux"))
        self.assertEqual(config["config"]["User"], "65532:65532")
        self.assertEqual((config["config"]["Entrypoint"], config["config"]["Cmd"]), (["/consentd"], ["serve"]))
        self.assertEqual(config["rootfs"]["diff_ids"], ["sha256:" + hashlib.sha256(self.raw).hexdigest()])

    def test_it_has_the_binary_its_documents_and_nothing_else(self):
        documents = {f"usr/share/doc/consentd/{n}" for n in ("LICENSE", "THIRD-PARTY-LICENSES", "sbom.cdx.json")}
        self.assertEqual(set(self.content), {"consentd"} | documents)
        for member in self.members:
            self.assertEqual((member.uid, member.gid, member.mtime), (0, 0, CREATED), member.name)
            self.assertEqual(member.mode & 0o022, 0, member.name)
        self.assertEqual(next(m.mode for m in self.members if m.name == "consentd"), 0o755)

    def test_annotations_name_the_commit_and_the_licence(self):
        annotations = self.manifest["annotations"]
        self.assertEqual(annotations["org.opencontainers.image.revision"], "abc")
        self.assertEqual(annotations["org.opencontainers.image.licenses"], "Apache-2.0")
        self.assertEqual(annotations["org.opencontainers.image.created"], "2023-11-14T22:13:20Z")

    def test_the_sbom_has_what_the_binary_is_made_of(self):
        sbom = json.loads(self.content["usr/share/doc/consentd/sbom.cdx.json"])
        self.assertEqual((sbom["bomFormat"], sbom["specVersion"]), ("CycloneDX", "1.5"))
        names = {component["name"] for component in sbom["components"]}
        self.assertLessEqual({"tokio", "tonic", "redb", "ring", "consentd-core", "musl", "rust-std"}, names)
        # What tests, build scripts and the compiler use is not in the binary.
        self.assertFalse({"proptest", "criterion", "protox", "serde_derive", "cc"} & names)
        refs = {component["bom-ref"] for component in sbom["components"]} | {sbom["metadata"]["component"]["bom-ref"]}
        for edge in sbom["dependencies"]:
            self.assertLessEqual({edge["ref"], *edge["dependsOn"]}, refs)
        for component in sbom["components"]:
            self.assertTrue(component["licenses"], component["name"])

    def test_the_licences_of_every_crate_are_there(self):
        licences = self.content["usr/share/doc/consentd/THIRD-PARTY-LICENSES"].decode()
        sbom = json.loads(self.content["usr/share/doc/consentd/sbom.cdx.json"])
        for component in sbom["components"]:
            if component.get("purl"):
                self.assertIn(f"{component['name']} {component['version']} (", licences)
        self.assertIn("musl's licence", licences)

    def test_two_platforms_make_one_index(self):
        archive = Archive(build(self.folder.name, "both.tar", "amd64", "arm64"))
        index = archive.json(archive.top())
        platforms = [manifest["platform"]["architecture"] for manifest in index["manifests"]]
        self.assertEqual(platforms, ["amd64", "arm64"])
        for manifest in index["manifests"]:
            config = archive.json(archive.json(manifest)["config"])
            self.assertEqual(config["architecture"], manifest["platform"]["architecture"])


if __name__ == "__main__":
    unittest.main()
