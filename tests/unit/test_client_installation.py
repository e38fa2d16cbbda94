"""What a client application gets: the wheel, installed as its users do."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"googleapis_common_protos", "grpcio", "grpcio_status", "matchflow", "pip", "protobuf", "typing_extensions"}
HEAVY = ("faiss", "lmdb", "numba", "numpy", "onnxruntime", "PIL", "pydantic", "rich", "torch", "typer")

LOOK = f"""
import importlib.metadata, importlib.util, json, sys
import matchflow
client = matchflow.Client("localhost:1")
client.close()
print(json.dumps({{
    "installed": sorted(d.name.lower().replace("-", "_") for d in importlib.metadata.distributions()),
    "found": [name for name in {HEAVY!r} if importlib.util.find_spec(name)],
    "from": matchflow.__file__,
}}))
"""


def run(*command: object, folder: Path) -> str:
    process = subprocess.run([str(part) for part in command], cwd=folder, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of a new environment in which only the built wheel and what it asks for are installed."""
    folder = tmp_path_factory.mktemp("client")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, folder=folder)
    (wheel,) = folder.glob("matchflow-*.whl")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", "--constraint", ROOT / "constraints.txt", wheel, folder=folder)
    return python


def test_the_client_installs_without_anything_heavy(clean_python: Path, tmp_path: Path) -> None:
    seen = json.loads(run(clean_python, "-I", "-c", LOOK, folder=tmp_path))
    assert "venv" in seen["from"]
    assert seen["found"] == []
    assert set(seen["installed"]) - {"setuptools"} <= ALLOWED


def test_the_contract_and_its_types_come_along(clean_python: Path, tmp_path: Path) -> None:
    look = (
        "import matchflow, pathlib; print(*sorted(p.name for p in pathlib.Path(matchflow.__file__).parent.rglob('*')))"
    )
    names = run(clean_python, "-I", "-c", look, folder=tmp_path).split()
    assert {"py.typed", "search.proto", "search_pb2.pyi", "search_pb2_grpc.py"} <= set(names)


def test_the_command_without_its_extra_says_what_to_install(clean_python: Path, tmp_path: Path) -> None:
    process = subprocess.run(
        [clean_python.parent / "matchflow", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "pip install 'matchflow[service]'" in process.stderr
    assert "Traceback" not in process.stderr


def test_the_command_says_which_extra_it_needs(clean_python: Path, tmp_path: Path) -> None:
    process = subprocess.run(
        [clean_python.parent / "matchflow", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr == "matchflow: the command line needs typer; run: pip install 'matchflow[service]'\n"
