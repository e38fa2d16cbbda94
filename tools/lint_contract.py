"""Lint proto/ with buf, offline: protoc resolves the imports, buf reads the result and the rules of buf.yaml."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Return buf's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "contract.binpb"
        subprocess.run(
            [
                sys.executable,
                "-m",
                "grpc_tools.protoc",
                f"-I{ROOT / 'proto'}",
                f"-I{sysconfig.get_path('purelib')}",
                "--include_imports",
                "--include_source_info",
                f"-o{image}",
                *map(str, sorted((ROOT / "proto" / "matchflow" / "v1").glob("*.proto"))),
            ],
            check=True,
        )
        buf = Path(sysconfig.get_path("scripts")) / "buf"
        rules = (ROOT / "buf.yaml").read_text()
        return subprocess.run([buf, "lint", image, "--config", rules], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
