"""The GPU benchmark: its floors, and that it runs wherever torch does."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import gpu_matching
import numpy as np
import pytest
import torch
from gpu_matching import Peaks, floors_s, measure, peaks_of

from matchflow_matching import Marginals, MatchSettings
from matchflow_matching.torch_matching import DeviceBatch
from matching_strategies import random_batch

if TYPE_CHECKING:
    from pathlib import Path

ONES = Peaks(bytes_per_s=1.0, int8_per_s=1.0, float32_per_s=2.0, lanes_per_special=8)


def a_batch(count: int, cells: int, dim: int) -> DeviceBatch:
    return DeviceBatch.upload(random_batch(np.random.default_rng(0), count, cells, dim))


def faster(kind: str) -> Peaks:
    match kind:
        case "bytes_per_s":
            return replace(ONES, bytes_per_s=2.0)
        case "int8_per_s":
            return replace(ONES, int8_per_s=2.0)
        case _:
            return replace(ONES, float32_per_s=4.0)


def test_floors_count_what_the_docstring_says() -> None:
    floors = floors_s(a_batch(2, 3, 10), a_batch(5, 4, 10), 6.0, ONES)
    assert floors["bytes"] == 2 * (3 * 14 + 70) + 5 * (4 * 14 + 70) + 23 * 10
    assert floors["bytewise"] == 10 * 2 * 10 * (12 + 3 * 4 + 3 * 3 + 9)
    assert floors["single"] == 10 * (4 * 12 + 6 * (24 + 7 + 8))
    assert floors["special"] == 10 * 8 * (12 + 6 * 7)


@pytest.mark.parametrize("kind", ["bytes_per_s", "int8_per_s", "float32_per_s"])
def test_a_device_twice_as_fast_halves_its_floors(kind: str) -> None:
    batch = a_batch(2, 4, 8)
    once, twice = floors_s(batch, batch, 3.0, ONES), floors_s(batch, batch, 3.0, faster(kind))
    moved = {name for name in once if twice[name] == once[name] / 2}
    assert (
        moved
        == {
            "bytes_per_s": {"bytes"},
            "int8_per_s": {"bytewise"},
            "float32_per_s": {"single", "special"},
        }[kind]
    )


@pytest.mark.parametrize(
    ("name", "gigabytes_per_s"),
    [
        ("NVIDIA H100 80GB HBM3", 3350),
        ("NVIDIA H100 PCIe", 2000),
        ("NVIDIA H200", 4800),
        ("NVIDIA A100-SXM4-80GB", 2040),
        ("NVIDIA L40S", 864),
        ("NVIDIA L4", 300),
        ("Tesla T4", 320),
    ],
)
def test_known_devices_have_the_peaks_of_their_data_sheets(name: str, gigabytes_per_s: float) -> None:
    assert math.isclose(peaks_of(name).bytes_per_s, gigabytes_per_s * 1e9, rel_tol=0.01)


def test_the_measurement_runs_on_a_processor_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rng = np.random.default_rng(0)
    found = measure(random_batch(rng, 2, 4, 16), random_batch(rng, 3, 4, 16), "cpu", ONES, turns=1)
    assert found["largest_score_difference"] <= 1e-5
    assert found["pairs_of_other_iterations"] == 0
    assert found["floors_ms"][found["binding_floor"]] == max(found["floors_ms"].values())
    assert found["fraction_of_floor"] > 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_the_floors_are_those_of_the_default_settings() -> None:
    # The model counts attention by digits of the other side's global vector.
    assert MatchSettings().marginals is Marginals.CROSS_CORRELATION


def test_without_a_gpu_it_says_so_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_matching.py"])
    monkeypatch.setattr("report.BENCH", tmp_path)
    gpu_matching.main()
    assert "No CUDA device" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
