"""The Triton kernel compiles for GPUs without one, and its inner loop is what it was designed to be."""

from __future__ import annotations

import pytest
from compiled_triton import AMPERE, HOPPER, OUTSIDE_REGISTERS, compiled, tools_are_here

from matchflow_matching.triton_kernels import SELF
from matchflow_matching.triton_matching import Family

# What a block has without asking for more, on every GPU.
SHARED_BYTES = 48 * 1024

pytestmark = pytest.mark.skipif(not tools_are_here(), reason="this Triton came without ptxas")


def family_of(rx: int, rq: int, dim: int) -> Family:
    family = Family.of(rx, rq, dim)
    assert family is not None
    return family


@pytest.mark.parametrize(
    ("shape", "architecture"),
    [
        ((16, 16, 128), AMPERE),
        ((16, 16, 128), HOPPER),
        ((32, 32, 512), HOPPER),
        ((49, 49, 128), HOPPER),
        ((128, 128, 512), AMPERE),
        ((128, 128, 512), HOPPER),
    ],
)
def test_a_family_compiles_and_iterates_in_registers(shape: tuple[int, int, int], architecture: int) -> None:
    family = family_of(*shape)
    found = compiled(family, architecture)
    assert found.registers <= family.registers
    assert found.shared_bytes <= SHARED_BYTES
    assert found.tile["IMMA"] > 0, "similarities come from tensor cores"
    if family.warps == 1:
        assert not set(found.iteration) & OUTSIDE_REGISTERS
        # One multiplication and addition per entry and direction, but for the first of each chain.
        entries = 1 << (family.log_xr + family.log_yr)
        assert 2 * entries * 0.9 <= found.iteration["FFMA"] <= 2 * entries * 1.1


def test_every_option_at_once_compiles() -> None:
    options = {"MARGINALS": SELF.value, "SPATIAL": True, "IMAGE_MASKED": True, "QUERY_MASKED": True, "FLOWS": 3}
    found = compiled(family_of(16, 16, 128), HOPPER, **options)
    assert not set(found.iteration) & OUTSIDE_REGISTERS


@pytest.mark.parametrize("shape", [(129, 16, 128), (16, 129, 128), (16, 16, 120)])
def test_shapes_beyond_the_families_have_none(shape: tuple[int, int, int]) -> None:
    assert Family.of(*shape) is None


@pytest.mark.parametrize("rx", [1, 15, 16, 17, 49, 64, 65, 128])
@pytest.mark.parametrize("rq", [1, 16, 33, 128])
def test_a_family_has_room_for_its_cells_and_fills_a_warp(rx: int, rq: int) -> None:
    family = family_of(rx, rq, 32)
    rows, columns = (1 << family.log_xr) * family.xl, (1 << family.log_yr) * family.yl // 2
    assert rows >= rx
    assert columns >= rq
    assert family.images * family.xl == 8
    assert 8 // family.yl * family.yl == 8
