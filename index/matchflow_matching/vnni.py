"""Int8 products by the vector-neural-network instructions of x86 processors (AVX512-VNNI), where there are any.

One instruction multiplies 64 pairs of bytes and adds them in fours to 16 sums, but wants one side unsigned. So the
query's columns are stored plus 128, and a column of zeros gives what that adds: sum_k (q + 128) x - sum_k 128 x =
sum_k q x. All of it is exact, so the results are those of any other way to multiply.

Columns are packed in panels of 32: [panels, D / 4, 32, 4] bytes, in the order in which the instruction takes them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    from collections.abc import Callable


LANES = 16
BYTES_PER_STEP = 4
PANEL = 2 * LANES
PANEL_STEP_BYTES = PANEL * BYTES_PER_STEP
OFFSET = 128
INSTRUCTION = "llvm.x86.avx512.vpdpbusd.512"
# Since LLVM 21 the instruction's operands are declared as bytes.
BYTE_OPERANDS_SINCE = 21

BYTE, INT32, INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
SUMS = ir.VectorType(INT32, LANES)
OPERAND = ir.VectorType(BYTE, 64) if binding.llvm_version_info[0] >= BYTE_OPERANDS_SINCE else SUMS


@cache
def is_available() -> bool:
    """Tell whether this processor has the instructions."""
    features = binding.get_host_cpu_features()
    return bool(features.get("avx512vnni") and features.get("avx512bw"))


def _block(rows: int) -> Any:
    """Return a compiled function that multiplies `rows` rows of bytes with one panel.

    Its arguments are addresses and sizes, all intp: rows, bytes from row to row, panel, steps (D / 4), sums int32,
    bytes from one row of sums to the next.
    """

    @intrinsic
    def multiply(
        _context: Any, _rows: Any, _row_bytes: Any, _panel: Any, _steps: Any, _sums: Any, _sum_bytes: Any
    ) -> tuple[Any, Callable[..., Any]]:
        def generate(context: Any, builder: ir.IRBuilder, _signature: Any, arguments: Any) -> Any:
            _emit(builder, rows, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return multiply


def _emit(
    builder: ir.IRBuilder,
    rows: int,
    row_address: ir.Value,
    row_bytes: ir.Value,
    panel: ir.Value,
    steps: ir.Value,
    sums: ir.Value,
    sum_bytes: ir.Value,
) -> None:
    """Write the loop over steps; the sums stay in registers until it ends."""
    instruction = builder.module.globals.get(INSTRUCTION) or ir.Function(
        builder.module, ir.FunctionType(SUMS, [SUMS, OPERAND, OPERAND]), INSTRUCTION
    )

    def offset(base: ir.Value, count: ir.Value, size: ir.Value | int) -> ir.Value:
        return builder.add(base, builder.mul(count, ir.Constant(INT64, size) if isinstance(size, int) else size))

    def constant(value: int) -> ir.Constant:
        return ir.Constant(INT64, value)

    before, loop, after = builder.block, builder.append_basic_block("step"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(INT64)
    step.add_incoming(constant(0), before)
    running = [[builder.phi(SUMS) for _ in range(2)] for _ in range(rows)]
    for phis in running:
        for phi in phis:
            phi.add_incoming(ir.Constant(SUMS, None), before)
    half_bytes = PANEL_STEP_BYTES // 2
    columns = [
        _load(builder, offset(builder.add(panel, constant(half * half_bytes)), step, PANEL_STEP_BYTES), OPERAND)
        for half in range(2)
    ]
    for row, phis in enumerate(running):
        start = offset(row_address, constant(row), row_bytes)
        spread = _spread(builder, _load(builder, offset(start, step, BYTES_PER_STEP), INT32))
        for half, phi in enumerate(phis):
            phi.add_incoming(builder.call(instruction, [phi, columns[half], spread]), loop)
    following = builder.add(step, constant(1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    for row, phis in enumerate(running):
        for half, phi in enumerate(phis):
            place = offset(builder.add(sums, constant(half_bytes * half)), constant(row), sum_bytes)
            builder.store(phi.incomings[1][0], builder.inttoptr(place, SUMS.as_pointer())).align = 1


def _load(builder: ir.IRBuilder, address: ir.Value, kind: ir.Type) -> ir.Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


def _spread(builder: ir.IRBuilder, word: ir.Value) -> ir.Value:
    """Return four bytes repeated over a whole operand."""
    undefined = ir.Constant(SUMS, ir.Undefined)
    first = builder.insert_element(undefined, word, ir.Constant(INT32, 0))
    spread = builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, LANES), [0] * LANES))
    return builder.bitcast(spread, OPERAND) if OPERAND is not SUMS else spread


multiply_four_rows = _block(4)
multiply_row = _block(1)
