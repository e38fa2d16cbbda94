from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
from client_counterpart import Counterpart, running

from matchflow_cli import doctor_checks
from matchflow_cli.application import run
from matchflow_cli.doctor_checks import Verdict
from matchflow_index import GalleryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from matchflow_bundle import Bundle

CPU = "CPUExecutionProvider"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_this_python_is_new_enough_and_an_old_one_is_not() -> None:
    assert doctor_checks.check_python().verdict is Verdict.OK
    old = doctor_checks.check_python((3, 10, 1))
    assert old.verdict is Verdict.FAIL
    assert old.found.startswith("3.10.1")
    assert "3.11" in old.advice


def test_packages_are_listed_with_their_versions() -> None:
    service, exporter = doctor_checks.check_packages()
    assert (service.verdict, exporter.verdict) == (Verdict.OK, Verdict.OK)
    assert "onnxruntime " in service.found


def test_a_missing_package_is_a_failure_and_a_missing_exporter_a_warning() -> None:
    service, exporter = doctor_checks.check_packages(["numpy", "no-such-thing"], ["no-such-torch"])
    assert service.verdict is Verdict.FAIL
    assert service.found == "not installed: no-such-thing"
    assert "matchflow[service]" in service.advice
    assert exporter.verdict is Verdict.WARN
    assert "matchflow[export]" in exporter.advice


def test_a_provider_that_is_not_there_is_a_failure_that_names_those_that_are() -> None:
    assert doctor_checks.check_provider(CPU).verdict is Verdict.OK
    finding = doctor_checks.check_provider("QuantumExecutionProvider")
    assert finding.verdict is Verdict.FAIL
    assert CPU in finding.found


def test_a_bundle_is_loaded_and_its_goldens_run(sample_bundle: Bundle) -> None:
    (finding,) = doctor_checks.check_bundles([sample_bundle.path], CPU)
    assert finding.verdict is Verdict.OK
    assert sample_bundle.digest[:12] in finding.found
    assert "golden inputs pass" in finding.found


def test_a_folder_that_is_no_bundle_is_a_failure(tmp_path: Path) -> None:
    (finding,) = doctor_checks.check_bundles([tmp_path], CPU)
    assert finding.verdict is Verdict.FAIL
    assert "matchflow export" in finding.advice


def test_no_bundle_and_no_store_are_warnings() -> None:
    (bundle,) = doctor_checks.check_bundles([], CPU)
    (store,) = doctor_checks.check_store(None)
    assert bundle.verdict is store.verdict is Verdict.WARN


def test_a_store_is_opened_and_its_disk_looked_at(tmp_path: Path) -> None:
    GalleryStore.open(tmp_path / "store").close()
    store, disk = doctor_checks.check_store(tmp_path / "store")
    assert store.verdict is Verdict.OK
    assert "0 galleries" in store.found
    assert disk.subject == "disk"


def test_a_folder_that_is_no_store_is_a_failure(tmp_path: Path) -> None:
    store, _ = doctor_checks.check_store(tmp_path)
    assert store.verdict is Verdict.FAIL


def test_a_store_that_can_not_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    GalleryStore.open(tmp_path / "store").close()
    # The tests may run as root, to whom nothing is read-only.
    monkeypatch.setattr("os.access", lambda *_: False)
    store, _ = doctor_checks.check_store(tmp_path / "store")
    assert store.verdict is Verdict.FAIL
    assert "right to write" in store.advice


def test_a_store_that_does_not_exist_yet_is_made_later(tmp_path: Path) -> None:
    store, _ = doctor_checks.check_store(tmp_path / "some" / "where")
    assert store.verdict is Verdict.OK
    assert not (tmp_path / "some").exists()


def test_a_store_below_a_file_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store, _ = doctor_checks.check_store(tmp_path / "file" / "store")
    assert store.verdict is Verdict.FAIL


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "LEAST_FREE_BYTES", 1 << 80)
    _, disk = doctor_checks.check_store(tmp_path / "new")
    assert disk.verdict is Verdict.WARN
    assert "make room" in disk.advice


def test_a_free_port_is_fine() -> None:
    assert doctor_checks.check_port("127.0.0.1", free_port()).verdict is Verdict.OK


def test_a_port_that_something_else_has_taken_is_a_failure(taken_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "CONNECT_TIMEOUT_S", 0.3)
    finding = doctor_checks.check_port("127.0.0.1", taken_port)
    assert finding.verdict is Verdict.FAIL
    assert "taken by something else" in finding.found


def test_a_server_of_another_kind_is_something_else() -> None:
    with running(Counterpart()) as counterpart:
        host, _, port = counterpart.target.partition(":")
        finding = doctor_checks.check_port(host, int(port))
    assert finding.verdict is Verdict.FAIL
    assert "UNEXPECTED_STATUS" in finding.found


def test_an_address_that_is_not_ours_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "CONNECT_TIMEOUT_S", 0.3)
    finding = doctor_checks.check_port("192.0.2.1", 50051)
    assert finding.verdict is Verdict.FAIL
    assert "nothing can listen on 192.0.2.1:50051 here" in finding.found
    assert "--host" in finding.advice


def test_the_doctor_prints_a_line_per_finding_and_ends_with_zero(
    sample_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, store = str(sample_bundle.path), str(tmp_path / "store")
    assert run(["doctor", "--bundle", bundle, "--store", store, "--port", str(free_port())]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == [
        *("python", "packages", "exporter", "provider", "bundle", "store", "disk", "port")
    ]


def test_the_doctor_ends_with_one_when_something_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MATCHFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MATCHFLOW_BUNDLES", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert run(["doctor", "--port", str(free_port())]) == 1
    out = capsys.readouterr().out
    assert out.count("FAIL bundle") == 2
    assert " -> " in out
