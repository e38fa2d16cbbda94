"""A bundle on disk: a directory with `model.onnx` and `bundle.json`, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from matchflow_bundle.errors import BundleCorruptError, BundleExistsError, BundleInvalidError
from matchflow_bundle.manifest import BundleManifest

MODEL_FILE = "model.onnx"
MANIFEST_FILE = "bundle.json"
READ_BY_ALL = 0o755


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read; `digest` is the sha256 over the bytes of model.onnx, then of bundle.json, in hex."""

    path: Path
    manifest: BundleManifest
    digest: str

    def read_model(self) -> bytes:
        """Return model.onnx; raise BundleCorruptError if it is no longer the model that was vouched for."""
        return _read_model(self.path, self.manifest)


def load_bundle(path: Path) -> Bundle:
    """Read and check the bundle in the directory `path`.

    Raises BundleInvalidError for a directory that is no bundle of a known schema, and BundleCorruptError when either
    file is not what was written. The goldens are run by Encoder.open, where the provider is known.
    """
    text = _read(path / MANIFEST_FILE)
    try:
        manifest = BundleManifest.model_validate_json(text)
    except ValidationError as error:
        raise BundleInvalidError(f"{path / MANIFEST_FILE} is not a manifest of a known schema: {error}") from error
    if not manifest.is_sealed():
        raise BundleCorruptError(f"{path / MANIFEST_FILE} was changed: its manifest_sha256 does not vouch for it")
    model = _read_model(path, manifest)
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(model + text).hexdigest())


def write_bundle(path: Path, model: bytes, manifest: BundleManifest, *, overwrite: bool = False) -> Bundle:
    """Write a bundle to the directory `path` and read it back.

    `model` is the ONNX file that `manifest.model_sha256` is of. The directory appears complete or not at all: it is
    made beside its place, synced, then renamed. Raises BundleExistsError if something stands there and `overwrite` is
    not given, BundleInvalidError if it is given and what stands there is no bundle: that is never removed.
    """
    if path.exists() or path.is_symlink():
        if not overwrite:
            raise BundleExistsError(f"expected nothing at {path}; it exists")
        if not (path / MANIFEST_FILE).is_file():
            raise BundleInvalidError(f"expected a bundle to replace at {path}; it holds no {MANIFEST_FILE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new = staging / "new"
        new.mkdir(mode=READ_BY_ALL)
        _write(new / MODEL_FILE, model)
        _write(new / MANIFEST_FILE, (manifest.sealed().model_dump_json(indent=1) + "\n").encode())
        _sync_directory(new)
        load_bundle(new)
        if path.exists():
            path.rename(staging / "old")
        new.rename(path)
        _sync_directory(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return load_bundle(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleInvalidError(f"expected a bundle with {path.name}: {error}") from error


def _read_model(path: Path, manifest: BundleManifest) -> bytes:
    model = _read(path / MODEL_FILE)
    actual = hashlib.sha256(model).hexdigest()
    if actual != manifest.model_sha256:
        raise BundleCorruptError(
            f"{path / MODEL_FILE} was changed: expected sha256 {manifest.model_sha256}; got {actual}"
        )
    return model


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
