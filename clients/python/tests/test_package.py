"""What the package is made of: its version, the generated code, and what its README shows."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import AMPLE_SECONDS, CLIENTS, PATIENCE_SECONDS

import consentd
from consentd.testing import Sidecar

INSTALLED = Path(consentd.__file__).parent
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_version_is_the_servers() -> None:
    manifest = (CLIENTS.parent / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(r"^\[workspace\.package\]\nversion = \"([^\"]+)\"", manifest, re.MULTILINE)
    assert found
    assert consentd.__version__ == found[1]
    assert importlib.metadata.version("consentd") == found[1]


def test_generated_code_is_current(tmp_path: Path) -> None:
    subprocess.run([str(CLIENTS / "python" / "generate"), str(tmp_path)], check=True, timeout=10 * PATIENCE_SECONDS)
    generated = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*_pb2*"))
    installed = sorted(path.relative_to(INSTALLED) for path in INSTALLED.rglob("*_pb2*") if path.suffix != ".pyc")
    assert generated == installed
    assert len(generated) == 11
    for path in generated:
        assert (tmp_path / path).read_text() == (INSTALLED / path).read_text(), f"{path}: run clients/python/generate"


def test_what_is_installed() -> None:
    files = {str(path) for path in importlib.metadata.files("consentd") or ()}
    assert "consentd/py.typed" in files
    assert any(name.endswith("licenses/LICENSE") for name in files)
    assert not [name for name in files if name.startswith(("tests/", "recipes/", "benchmarks/"))]
    needed = importlib.metadata.requires("consentd") or []
    assert sorted(re.split(r"[<>=]", one)[0] for one in needed) == ["grpcio", "protobuf"]


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_readme(sidecar: Sidecar, tmp_path: Path, number: int) -> None:
    program = tmp_path / "example.py"
    # The usual deadline of a check may be too near on a machine that is busy with tests.
    patient = re.sub(r"\b((?:Async)?Client)\(", rf"\1(timeout={AMPLE_SECONDS}, ", EXAMPLES[number])
    program.write_text(patient)
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "CONSENTD_ADDR": sidecar.address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    expected = re.findall(r"# prints: (.*)", EXAMPLES[number])
    assert ran.stdout.splitlines() == expected


def test_readme_has_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert any("prints: " in example for example in EXAMPLES)
