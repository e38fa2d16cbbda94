from __future__ import annotations

import importlib
import json
import math
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # Benchmarks are scripts: each finds its neighbours in its own folder.
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("report")


def read(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def test_a_report_holds_figures_details_machine_and_command(report: ModuleType, tmp_path: Path) -> None:
    path = report.write_report("speed", {"p50_ms": 1.5}, {"images": 3}, "make bench-speed", folder=tmp_path)
    written = read(path)
    assert path == tmp_path / "speed.json"
    assert tuple(written) == report.OWN_KEYS
    assert written["figures"] == {"p50_ms": 1.5}
    assert written["details"] == {"images": 3}
    assert written["command"] == "make bench-speed"


def test_entries_stand_beside_the_figures(report: ModuleType, tmp_path: Path) -> None:
    path = report.write_report("accuracy", {"mean": 0.5}, {}, "c", entries={"noto": {"classes": 2}}, folder=tmp_path)
    written = read(path)
    assert written["noto"] == {"classes": 2}
    assert written["figures"] == {"mean": 0.5}


def test_an_entry_that_would_cover_the_figures_is_refused(report: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got figures again"):
        report.write_report("accuracy", {}, {}, "c", entries={"figures": {}}, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_figure_that_is_not_finite_is_refused_and_the_last_report_stays(
    report: ModuleType, tmp_path: Path, value: float
) -> None:
    path = report.write_report("speed", {"p50_ms": 1}, {}, "c", folder=tmp_path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_report("speed", {"p50_ms": value}, {}, "c", folder=tmp_path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["speed.json"]


def test_the_table_names_every_figure_and_the_file(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = report.write_report("speed", {"p50_ms": 1.23456, "ratio": 0.7}, {}, "c", folder=tmp_path / "new")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("bench-speed", "p50_ms", "1.235", "ratio", "0.7", str(path)))


def test_the_machine_is_described_without_naming_it(report: ModuleType, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast Chip 9\nmodel name\t: another\n")
    described = report.machine(cpuinfo)
    assert described["cpu"] == "Fast Chip 9"
    assert described["python"] == platform.python_version()
    assert described["libraries"]["numpy"]
    assert platform.node() not in json.dumps(described)


def test_a_machine_without_cpuinfo_still_has_a_processor(report: ModuleType, tmp_path: Path) -> None:
    assert report.machine(tmp_path / "absent")["cpu"]
    (tmp_path / "odd").write_text("no model here\n")
    assert report.machine(tmp_path / "odd")["cpu"]


def test_a_library_that_is_not_installed_is_left_out(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LIBRARIES", ("numpy", "no-such-library-anywhere"))
    assert set(report.machine()["libraries"]) == {"numpy"}


def test_cores_are_those_that_this_process_may_use(report: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= report.usable_cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert report.usable_cores() == os.cpu_count()
