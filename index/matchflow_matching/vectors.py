"""A matrix product with a vector, written in the compiler's own vectors so that the sums stay in registers.

The loop that Python would have to write reloads and stores every sum for every few rows, and costs about four times as
much. Nothing here is particular to a processor: LLVM splits the vectors into what the machine has, and the order of
additions is written down, so every machine gets the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE, NARROW = 16, 8
ROWS_PER_STEP = 4
FLOAT_BYTES = 4
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)


def padded(size: int) -> int:
    """Return the size to which rows and columns are padded with zeros: a multiple of 8."""
    return -(-size // NARROW) * NARROW


def _columns(width: int) -> Any:
    """Return a compiled function: `width` columns of matrix' @ factors, a number of rows that is a multiple of 4.

    Its arguments are addresses and sizes, all intp: matrix float32, bytes from row to row, rows, factors, sums.
    """

    @intrinsic
    def multiply(
        _context: Any, _matrix: Any, _row_bytes: Any, _rows: Any, _factors: Any, _sums: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            _emit(builder, ir.VectorType(FLOAT, width), *arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return multiply


def _emit(
    builder: ir.IRBuilder,
    kind: ir.VectorType,
    matrix: ir.Value,
    row_bytes: ir.Value,
    rows: ir.Value,
    factors: ir.Value,
    sums: ir.Value,
) -> None:
    before, loop, after = builder.block, builder.append_basic_block("rows"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    first = builder.phi(INT64)
    first.add_incoming(ir.Constant(INT64, 0), before)
    running = [builder.phi(kind) for _ in range(ROWS_PER_STEP)]
    added = []
    for step, phi in enumerate(running):
        row = builder.add(first, ir.Constant(INT64, step))
        values = _load(builder, builder.add(matrix, builder.mul(row, row_bytes)), kind)
        factor = _load(builder, builder.add(factors, builder.mul(row, ir.Constant(INT64, FLOAT_BYTES))), FLOAT)
        added.append(builder.fadd(phi, builder.fmul(values, _spread(builder, factor, kind))))
        phi.add_incoming(ir.Constant(kind, None), before)
        phi.add_incoming(added[-1], loop)
    following = builder.add(first, ir.Constant(INT64, ROWS_PER_STEP))
    first.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, rows), loop, after)
    builder.position_at_end(after)
    total = builder.fadd(builder.fadd(added[0], added[1]), builder.fadd(added[2], added[3]))
    builder.store(total, builder.inttoptr(sums, kind.as_pointer())).align = FLOAT_BYTES


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = FLOAT_BYTES
    return loaded


def _spread(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, kind.count), [0] * kind.count))


wide_columns = _columns(WIDE)
narrow_columns = _columns(NARROW)
