"""Two inner loops written in the compiler's own vectors: a matrix times a vector, and the exponential.

The loops that Python would have to write reload and store every sum for every few rows, and cost about four times as
much. Nothing here is particular to a processor: LLVM splits the vectors into what the machine has, and the order of
additions is written down, so every machine gets the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from matchflow_matching.compiling import ROUNDER, ROUNDER_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

WIDE, NARROW = 16, 8
ROWS_PER_STEP = 4
FLOAT_BYTES = 4
FLOAT, INT32, INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
EXPONENTS, WHOLE = ir.VectorType(FLOAT, WIDE), ir.VectorType(INT32, WIDE)

# exp(-87) is near the smallest normal float32. Unit cells give exponents up to 0 and rounding; more is a damaged scale.
LOWEST_EXPONENT, HIGHEST_EXPONENT = -87.0, 80.0
LOG2_E = 1.4426950408889634
# ln 2 in two parts, the first with few enough bits that n times it is exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
TAYLOR = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0)
EXPONENT_BIAS, MANTISSA_BITS = 127, 23


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
            kind = ir.VectorType(FLOAT, width)
            *product, sums = arguments
            _store(builder, _emit_product(builder, kind, *product), sums)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 5), generate

    return multiply


def _quotients(width: int) -> Any:
    """Return a compiled function that does as those of `_columns`, and divides targets by the sums.

    Further arguments: targets and quotients. Where a sum is 0, as in the padding, the quotient is 0. Dividing while the
    sums are in registers halves the time of an iteration, which waits for each result in turn.
    """

    @intrinsic
    def divide(
        _context: Any, _matrix: Any, _row_bytes: Any, _rows: Any, _factors: Any, _sums: Any, _targets: Any, _out: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(FLOAT, width)
            *product, sums, targets, quotients = arguments
            total = _emit_product(builder, kind, *product)
            _store(builder, total, sums)
            zero = ir.Constant(kind, None)
            # True for NaN too, which must not be taken for padding.
            counts = builder.fcmp_unordered("!=", total, zero)
            quotient = builder.fdiv(_load(builder, targets, kind), total)
            _store(builder, builder.select(counts, quotient, zero), quotients)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 7), generate

    return divide


def _relaxed_quotients(width: int) -> Any:
    """Return a compiled function that does as those of `_quotients`, and goes half as far again: q^1.5 / before^0.5.

    Before the quotients comes the address of where each was before; it may be the same.
    """

    @intrinsic
    def divide(
        _context: Any,
        _matrix: Any,
        _row_bytes: Any,
        _rows: Any,
        _factors: Any,
        _sums: Any,
        _targets: Any,
        _before: Any,
        _out: Any,
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            kind = ir.VectorType(FLOAT, width)
            *product, sums, targets, before, quotients = arguments
            total = _emit_product(builder, kind, *product)
            _store(builder, total, sums)
            quotient = builder.fdiv(_load(builder, targets, kind), total)
            name = f"llvm.sqrt.v{width}f32"
            root = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(kind, [kind]), name)
            growth = builder.call(root, [builder.fdiv(quotient, _load(builder, before, kind))])
            zero = ir.Constant(kind, None)
            # Where the target is 0, as in the padding, all of them are; NaN stays.
            empty = builder.fcmp_ordered("==", _load(builder, targets, kind), zero)
            _store(builder, builder.select(empty, zero, builder.fmul(quotient, growth)), quotients)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), generate

    return divide


def _emit_product(
    builder: ir.IRBuilder,
    kind: ir.VectorType,
    matrix: ir.Value,
    row_bytes: ir.Value,
    rows: ir.Value,
    factors: ir.Value,
) -> ir.Value:
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
    return builder.fadd(builder.fadd(added[0], added[1]), builder.fadd(added[2], added[3]))


def _store(builder: ir.IRBuilder, value: ir.Value, address: ir.Value) -> None:
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = FLOAT_BYTES


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = FLOAT_BYTES
    return loaded


def _spread(builder: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, kind.count), [0] * kind.count))


def _exponentials(_context: Any, _values: Any, _count: Any) -> tuple[Any, Callable[..., Any]]:
    """Replace float32 values by exp(values), clamped to [-87, 80]; arguments: address and count, a multiple of 16.

    Cody-Waite reduction x = n ln2 + r with |r| <= ln2 / 2, then a Taylor polynomial of degree 6: the first dropped term
    is r^7 / 5040 <= 1.2e-7. NaN becomes exp(-87).
    """

    def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
        values, count = arguments
        before, loop, after = builder.block, builder.append_basic_block("exp"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        first = builder.phi(INT64)
        first.add_incoming(ir.Constant(INT64, 0), before)
        place = builder.add(values, builder.mul(first, ir.Constant(INT64, FLOAT_BYTES)))
        raised = _exponential(builder, _load(builder, place, EXPONENTS))
        _store(builder, raised, place)
        following = builder.add(first, ir.Constant(INT64, WIDE))
        first.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


def _exponential(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    def every(value: float | np.float32) -> ir.Constant:
        return ir.Constant(EXPONENTS, [float(np.float32(value))] * WIDE)

    def whole(value: int) -> ir.Constant:
        return ir.Constant(WHOLE, [value] * WIDE)

    x = builder.select(builder.fcmp_ordered(">", x, every(LOWEST_EXPONENT)), x, every(LOWEST_EXPONENT))
    x = builder.select(builder.fcmp_ordered("<", x, every(HIGHEST_EXPONENT)), x, every(HIGHEST_EXPONENT))
    shifted = builder.fadd(builder.fmul(x, every(LOG2_E)), every(ROUNDER))
    n = builder.fsub(shifted, every(ROUNDER))
    r = builder.fsub(builder.fsub(x, builder.fmul(n, every(LN2_HIGH))), builder.fmul(n, every(LN2_LOW)))
    p = every(TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        p = builder.fadd(builder.fmul(p, r), every(coefficient))
    biased = builder.add(builder.bitcast(shifted, WHOLE), whole(EXPONENT_BIAS - int(ROUNDER_BITS)))
    return builder.fmul(p, builder.bitcast(builder.shl(biased, whole(MANTISSA_BITS)), EXPONENTS))


exponentials: Any = intrinsic(_exponentials)
wide_columns = _columns(WIDE)
narrow_columns = _columns(NARROW)
wide_quotients = _quotients(WIDE)
narrow_quotients = _quotients(NARROW)
wide_relaxed_quotients = _relaxed_quotients(WIDE)
narrow_relaxed_quotients = _relaxed_quotients(NARROW)
