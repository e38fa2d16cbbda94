"""Products of 16-bit words in the compiler's own vectors, for processors without byte products (vnni.py).

Bytes are widened to words; a step multiplies two words of a row with two of each column and adds both products to an
int32 sum: one instruction and one addition on x86 since AVX2 (vpmaddwd), and what the machine has elsewhere. Sums are
exact for D up to 131,072, so the results are those of any other way to multiply.

Columns are packed in panels of 8: [panels, ceil(D / 2), 8, 2] words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS_PER_STEP = 2
PANEL = 8
ROWS = 4
STEP_BYTES = PANEL * WORDS_PER_STEP * 2
SUM_BYTES = 4

WORD, INT32, INT64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _block(panels: int) -> Any:
    """Return a compiled function that multiplies 4 rows of words with 1 or 2 panels side by side.

    Its arguments are addresses and sizes, all intp: rows, bytes from row to row, panels, steps (D / 2), sums int32,
    bytes from one row of sums to the next.
    """

    @intrinsic
    def multiply(
        _context: Any, _rows: Any, _row_bytes: Any, _panels: Any, _steps: Any, _sums: Any, _sum_bytes: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            _emit(builder, panels, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return multiply


def _emit(
    builder: ir.IRBuilder,
    panels: int,
    row_address: ir.Value,
    row_bytes: ir.Value,
    panel: ir.Value,
    steps: ir.Value,
    sums: ir.Value,
    sum_bytes: ir.Value,
) -> None:
    """Write the loop over steps; the sums stay in registers until it ends."""
    kind = ir.VectorType(INT32, PANEL)

    def constant(value: int) -> ir.Constant:
        return ir.Constant(INT64, value)

    before, loop, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("done")
    panel_bytes = builder.mul(steps, constant(STEP_BYTES))
    row_starts = [builder.add(row_address, builder.mul(constant(row), row_bytes)) for row in range(ROWS)]
    panel_starts = [builder.add(panel, builder.mul(constant(side), panel_bytes)) for side in range(panels)]
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(INT64)
    step.add_incoming(constant(0), before)
    running = [[builder.phi(kind) for _ in range(panels)] for _ in range(ROWS)]
    for phi in (phi for phis in running for phi in phis):
        phi.add_incoming(ir.Constant(kind, None), before)
    columns = [
        _load(builder, builder.add(start, builder.mul(step, constant(STEP_BYTES))), ir.VectorType(WORD, 2 * PANEL))
        for start in panel_starts
    ]
    for start, phis in zip(row_starts, running, strict=True):
        pair = _load(builder, builder.add(start, builder.mul(step, constant(2 * WORDS_PER_STEP))), INT32)
        spread = _spread(builder, pair)
        for phi, words in zip(phis, columns, strict=True):
            phi.add_incoming(builder.add(phi, _pair_sums(builder, words, spread)), loop)
    following = builder.add(step, constant(1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for row, phis in enumerate(running):
        for side, phi in enumerate(phis):
            place = builder.add(sums, builder.mul(constant(row), sum_bytes))
            place = builder.add(place, constant(side * PANEL * SUM_BYTES))
            builder.store(phi.incomings[1][0], builder.inttoptr(place, kind.as_pointer())).align = SUM_BYTES


def _pair_sums(builder: ir.IRBuilder, left: ir.Value, right: ir.Value) -> ir.Value:
    """Return left[2k] right[2k] + left[2k + 1] right[2k + 1], int32 [8], as compilers know the instruction."""
    wide = ir.VectorType(INT32, 2 * PANEL)
    products = builder.mul(builder.sext(left, wide), builder.sext(right, wide))
    undefined = ir.Constant(wide, ir.Undefined)

    def every_other(first: int) -> ir.Value:
        places = ir.Constant(ir.VectorType(INT32, PANEL), list(range(first, 2 * PANEL, 2)))
        return builder.shuffle_vector(products, undefined, places)

    return builder.add(every_other(0), every_other(1))


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 2
    return loaded


def _spread(builder: ir.IRBuilder, pair: ir.Value) -> ir.Value:
    """Return two words repeated over a whole vector of 16."""
    kind = ir.VectorType(INT32, PANEL)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, pair, ir.Constant(INT32, 0))
    spread = builder.shuffle_vector(first, undefined, ir.Constant(kind, [0] * PANEL))
    return builder.bitcast(spread, ir.VectorType(WORD, 2 * PANEL))


multiply_two_panels = _block(2)
multiply_panel = _block(1)
