"""Generate the gRPC stubs beside their .proto files, or check that the committed ones are what would be generated.

python tools/stubs.py           write them
python tools/stubs.py --check   exit 1 and name every file that differs
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from importlib import resources
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent.parent / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(destination: Path) -> None:
    """Run protoc over the contract and write all stubs under `destination`."""
    includes = [PROTO_ROOT, Path(sysconfig.get_path("purelib")), Path(str(resources.files("grpc_tools"))) / "_proto"]
    contract = sorted((PROTO_ROOT / "matchflow" / "v1").glob("*.proto"))
    outputs = ("python", "grpc_python", "mypy", "mypy_grpc")
    scripts = sysconfig.get_path("scripts")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *(f"-I{path}" for path in includes),
            *(f"--{output}_out={'quiet:' if 'mypy' in output else ''}{destination}" for output in outputs),
            *map(str, contract),
        ],
        check=True,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
    )


def differences() -> list[str]:
    """Return the stubs, as paths under proto/, that are missing, stale or superfluous."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = _stubs(Path(folder))
    committed = _stubs(PROTO_ROOT)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _stubs(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.name.endswith(SUFFIXES)}


def main() -> int:
    """Write the stubs, or check them."""
    if "--check" not in sys.argv[1:]:
        generate(PROTO_ROOT)
        return 0
    stale = differences()
    for name in stale:
        print(f"proto/{name} is not what its .proto file generates; run `make stubs`")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
