"""How every benchmark reports: build/bench/NAME.json, and its figures as a short table."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

BENCH = Path(__file__).resolve().parent.parent.parent / "build" / "bench"
LIBRARIES = (
    "efficientnet-lite-pytorch",
    "faiss-cpu",
    "grpcio",
    "lmdb",
    "numba",
    "numpy",
    "onnxruntime",
    "pillow",
    "resvg-py",
    "scipy",
    "torch",
)
OWN_KEYS = ("figures", "details", "machine", "command")


def write_report(
    name: str,
    figures: Mapping[str, float],
    details: Mapping[str, Any],
    command: str,
    *,
    entries: Mapping[str, Any] | None = None,
    folder: Path = BENCH,
) -> Path:
    """Write folder/NAME.json with figures, details, machine and command, print the figures, and return the path.

    `entries` stand beside the figures at the file's top level. The file is replaced whole or not at all. Raises
    ValueError for figures that are not finite and for entries that would cover one of the report's own keys.
    """
    covered = set(entries or {}) & set(OWN_KEYS)
    if covered:
        raise ValueError(f"expected entries beside {', '.join(OWN_KEYS)}; got {', '.join(sorted(covered))} again")
    report = {
        **(entries or {}),
        "figures": {key: float(value) for key, value in figures.items()},
        "details": dict(details),
        "machine": machine(),
        "command": command,
    }
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    incoming = path.with_suffix(".json.incoming")
    incoming.write_text(text, encoding="utf-8")
    incoming.replace(path)
    _print_figures(name, figures, path)
    return path


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Describe where the figures were taken: processor, usable cores, system, Python and the libraries that matter."""
    return {
        "cpu": _cpu_model(cpuinfo),
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }


def usable_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _cpu_model(cpuinfo: Path) -> str:
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _print_figures(name: str, figures: Mapping[str, float], path: Path) -> None:
    table = Table(title=f"bench-{name}", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4g}")
    console = Console()
    console.print(table)
    console.print(f"written to {path}", soft_wrap=True)
