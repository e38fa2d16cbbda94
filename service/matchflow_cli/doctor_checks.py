"""What the doctor looks at: each check returns findings, says what is wrong and what to do, and raises nothing."""

from __future__ import annotations

import enum
import errno
import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import matchflow
from matchflow_cli.failures import one_line
from matchflow_cli.output import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

OLDEST_PYTHON = (3, 11)
NEEDED = ("faiss-cpu", "grpcio", "lmdb", "numba", "numpy", "onnxruntime", "pillow", "pydantic-settings")
NEEDED_TO_EXPORT = ("torch", "onnx", "onnxscript", "efficientnet-lite-pytorch")
LEAST_FREE_BYTES = 1 << 30
CONNECT_TIMEOUT_S = 3.0


class Verdict(enum.StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's report; `advice` says what to do about what is not ok."""

    verdict: Verdict
    subject: str
    found: str
    advice: str = ""


def ok(subject: str, found: str) -> Finding:
    """Return a finding that needs nothing done."""
    return Finding(verdict=Verdict.OK, subject=subject, found=found)


def warn(subject: str, found: str, advice: str) -> Finding:
    """Return a finding that one can live with."""
    return Finding(verdict=Verdict.WARN, subject=subject, found=found, advice=advice)


def fail(subject: str, found: str, advice: str) -> Finding:
    """Return a finding that keeps a server from running."""
    return Finding(verdict=Verdict.FAIL, subject=subject, found=found, advice=advice)


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Look at the interpreter."""
    found = f"{'.'.join(map(str, version))} on {platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    if version[:2] < OLDEST_PYTHON:
        return fail("python", found, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or newer")
    return ok("python", found)


def check_packages(needed: Sequence[str] = NEEDED, to_export: Sequence[str] = NEEDED_TO_EXPORT) -> Iterator[Finding]:
    """Look for the packages of the extras."""
    found, complete = _versions(needed)
    yield ok("packages", found) if complete else fail("packages", found, "pip install 'matchflow[service]'")
    found, complete = _versions(to_export)
    advice = "only needed to export: pip install 'matchflow[export]'"
    yield ok("exporter", found) if complete else warn("exporter", found, advice)


def _versions(names: Sequence[str]) -> tuple[str, bool]:
    """Return the versions as text, or what is missing, and whether nothing is."""
    versions = {name: _version(name) for name in names}
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        return f"not installed: {', '.join(missing)}", False
    return ", ".join(f"{name} {version}" for name, version in versions.items()), True


def check_provider(provider: str) -> Finding:
    """Ask ONNX Runtime what it can run on."""
    try:
        import onnxruntime  # noqa: PLC0415
    except ImportError as error:
        return fail("provider", one_line(error), "pip install 'matchflow[service]'")
    available = onnxruntime.get_available_providers()
    found = f"ONNX Runtime offers {', '.join(available)}"
    if provider not in available:
        return fail("provider", f"{provider} is not there; {found}", "choose one that is with --provider")
    return ok("provider", found)


def check_bundles(paths: Sequence[Path], provider: str) -> Iterator[Finding]:
    """Load every bundle and run its golden inputs."""
    if not paths:
        yield warn("bundle", "none named", "name one with --bundle or MATCHFLOW_BUNDLES; `matchflow export` makes one")
    for path in paths:
        yield _check_bundle(path, provider)


def _check_bundle(path: Path, provider: str) -> Finding:
    try:
        from matchflow_bundle import BundleError, Encoder, load_bundle  # noqa: PLC0415
    except ImportError as error:
        return fail("bundle", one_line(error), "pip install 'matchflow[service]'")
    try:
        bundle = load_bundle(path)
        Encoder.open(bundle, provider=provider)
    except BundleError as error:
        return fail("bundle", f"{path}: {error}", "export it again with `matchflow export`, or name another")
    manifest = bundle.manifest
    return ok(
        "bundle",
        f"{path}: {manifest.name} version {manifest.version}, input {manifest.height_px} x {manifest.width_px}, "
        f"cells {manifest.grid.rows} x {manifest.grid.columns} of {manifest.embedding_dim}, "
        f"golden inputs pass on {provider}, digest {bundle.digest[:12]}",
    )


def check_store(path: Path | None) -> Iterator[Finding]:
    """Open the store beside whoever writes to it, and look at its disk."""
    if path is None:
        yield warn("store", "none named", "name a folder with --store or MATCHFLOW_STORE")
        return
    if path.exists():
        yield _open_store(path)
    else:
        yield _check_new_store(path)
    standing = next(each for each in (path, *path.absolute().parents) if each.exists())
    free_bytes = shutil.disk_usage(standing).free
    found = f"{free_bytes / (1 << 30):.1f} GiB free for {path}"
    if free_bytes < LEAST_FREE_BYTES:
        yield warn("disk", found, "make room: writes stop when the disk is full")
    else:
        yield ok("disk", found)


def _open_store(path: Path) -> Finding:
    try:
        from matchflow_index import GalleryIndexError, GalleryStore  # noqa: PLC0415
    except ImportError as error:
        return fail("store", one_line(error), "pip install 'matchflow[service]'")
    try:
        with GalleryStore.open(path, read_only=True) as store:
            names = [spec.gallery_id for spec in store.list()]
    except GalleryIndexError as error:
        return fail("store", str(error), "name the folder of a store, or one that does not exist yet")
    if not os.access(path, os.W_OK):
        return fail("store", f"{path} can be read, not written", "give the server's user the right to write there")
    return ok("store", f"{path}: {counted(len(names), 'gallery')}" + (f" ({', '.join(names[:5])})" if names else ""))


def _check_new_store(path: Path) -> Finding:
    parent = next(each for each in path.absolute().parents if each.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        return fail(
            "store", f"{path} does not exist and can't be made in {parent}", "name a folder that can be written"
        )
    return ok("store", f"{path} does not exist yet; `matchflow serve` makes it")


def check_port(host: str, port: int) -> Finding:
    """Find out whether a server can listen there, or one is there and healthy."""
    target = f"{host}:{port}"
    try:
        if _is_free(host, port):
            return ok("port", f"{target} is free")
        with matchflow.Client(target, timeout_s=CONNECT_TIMEOUT_S) as client:
            health = client.health()
            models = ", ".join(model.id for model in client.models()) if health is matchflow.Health.SERVING else ""
    except matchflow.MatchflowError as error:
        return fail("port", f"{target} is taken by something else ({error.reason})", "choose another with --port")
    except OSError as error:
        advice = "choose another --host, one of this machine; or another --port"
        return fail("port", f"nothing can listen on {target} here: {error.strerror or error}", advice)
    if health is not matchflow.Health.SERVING:
        return warn("port", f"the server on {target} says {health}", "look at its log; it may be starting or stopping")
    return ok("port", f"a healthy server is on {target}, with {models}")


def _is_free(host: str, port: int) -> bool:
    """Return whether nobody listens there; raise OSError where nobody here could."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # As the server binds: connections that linger after a stop are no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
