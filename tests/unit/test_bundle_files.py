"""A bundle on disk: whole, vouched for, and never half written."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from matchflow_bundle import (
    Bundle,
    BundleCorruptError,
    BundleError,
    BundleExistsError,
    BundleInvalidError,
    load_bundle,
    write_bundle,
)


@pytest.fixture
def copied(sample_bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sample_bundle.path, tmp_path / "copied"))


def test_the_digest_is_over_the_model_then_the_manifest(sample_bundle: Bundle) -> None:
    both = (sample_bundle.path / "model.onnx").read_bytes() + (sample_bundle.path / "bundle.json").read_bytes()
    assert sample_bundle.digest == hashlib.sha256(both).hexdigest()


def test_a_copy_of_a_bundle_is_the_same_bundle(sample_bundle: Bundle, copied: Path) -> None:
    again = load_bundle(copied)
    assert again.digest == sample_bundle.digest
    assert again.manifest == sample_bundle.manifest
    assert again.path == copied


def test_a_written_bundle_is_the_bundle_that_was_read(sample_bundle: Bundle, tmp_path: Path) -> None:
    written = write_bundle(tmp_path / "deep" / "er", sample_bundle.read_model(), sample_bundle.manifest)
    assert written.digest == sample_bundle.digest
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]
    assert stat.S_IMODE(written.path.stat().st_mode) & 0o500 == 0o500


def test_a_bundle_names_no_path_of_the_machine(sample_bundle: Bundle) -> None:
    root = Path(__file__).resolve().parents[2]
    content = sample_bundle.read_model() + (sample_bundle.path / "bundle.json").read_bytes()
    for trace in (str(root), str(Path.home()), sys.prefix, "site-packages", ".py"):
        if trace != "/":
            assert trace.encode() not in content


@pytest.mark.parametrize("position", [0.01, 0.5, 0.99])
def test_a_tampered_model_is_refused(copied: Path, position: float) -> None:
    model = bytearray((copied / "model.onnx").read_bytes())
    model[int(position * len(model))] ^= 1
    (copied / "model.onnx").write_bytes(model)
    with pytest.raises(BundleCorruptError, match=r"model\.onnx was changed"):
        load_bundle(copied)


def test_a_model_tampered_with_after_loading_is_refused(copied: Path) -> None:
    bundle = load_bundle(copied)
    (copied / "model.onnx").write_bytes(b"something else")
    with pytest.raises(BundleCorruptError):
        bundle.read_model()


def test_a_tampered_manifest_is_refused(copied: Path) -> None:
    text = (copied / "bundle.json").read_text()
    (copied / "bundle.json").write_text(
        text.replace('"power": 0.25', '"power": 0.5').replace('"power":0.25', '"power":0.5')
    )
    assert (copied / "bundle.json").read_text() != text
    with pytest.raises(BundleCorruptError, match=r"bundle\.json was changed"):
        load_bundle(copied)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", "\xff", '{"schema_version": 99}'])
def test_a_manifest_of_no_known_schema_is_refused(copied: Path, text: str) -> None:
    (copied / "bundle.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleInvalidError, match="not a manifest"):
        load_bundle(copied)


@pytest.mark.parametrize("name", ["model.onnx", "bundle.json"])
def test_a_bundle_without_one_of_its_files_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(BundleInvalidError, match=name):
        load_bundle(copied)


def test_what_is_no_directory_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(BundleInvalidError):
            load_bundle(path)


def test_writing_does_not_replace_unless_asked(sample_bundle: Bundle, copied: Path) -> None:
    renamed = sample_bundle.manifest.model_copy(update={"name": "other"})
    with pytest.raises(BundleExistsError, match="it exists"):
        write_bundle(copied, sample_bundle.read_model(), renamed)
    assert load_bundle(copied).manifest.name == "lite0"
    written = write_bundle(copied, sample_bundle.read_model(), renamed, overwrite=True)
    assert written.manifest.name == load_bundle(copied).manifest.name == "other"
    assert written.digest != sample_bundle.digest
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]


def test_overwriting_never_removes_what_is_no_bundle(sample_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "wedding.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_text("precious")
    for name in ("photos", "file"):
        with pytest.raises(BundleInvalidError, match="expected a bundle to replace"):
            write_bundle(tmp_path / name, sample_bundle.read_model(), sample_bundle.manifest, overwrite=True)
    assert (tmp_path / "photos" / "wedding.jpg").read_bytes() == b"precious"


def test_a_model_that_the_manifest_does_not_vouch_for_is_not_written(sample_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleCorruptError):
        write_bundle(tmp_path / "new", b"another model", sample_bundle.manifest)
    assert not list(tmp_path.iterdir())


def test_a_refused_replacement_leaves_the_old_bundle(sample_bundle: Bundle, copied: Path) -> None:
    with pytest.raises(BundleCorruptError):
        write_bundle(copied, b"another model", sample_bundle.manifest, overwrite=True)
    assert load_bundle(copied).digest == sample_bundle.digest
    assert [path.name for path in copied.parent.iterdir()] == ["copied"]


def test_every_refusal_has_one_root() -> None:
    assert issubclass(BundleCorruptError, BundleError)
    assert issubclass(BundleExistsError, BundleError)
    assert issubclass(BundleInvalidError, BundleError)


def test_importing_the_bundle_needs_no_torch(sample_bundle: Bundle) -> None:
    code = (
        "import sys, json, pathlib, matchflow_bundle\n"
        "matchflow_bundle.Encoder.open(matchflow_bundle.load_bundle(pathlib.Path(sys.argv[1])))\n"
        "print(json.dumps([name for name in ('torch', 'onnx', 'grpc', 'faiss') if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(sample_bundle.path)], check=True, capture_output=True, text=True, timeout=120
    )
    assert json.loads(done.stdout) == []
