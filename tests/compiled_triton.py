"""What the Triton kernel compiles to for GPUs that need not be there: registers, memory and instructions.

`python tests/compiled_triton.py` prints a table of all families for Ampere and Hopper.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from matchflow_matching.triton_kernels import CROSS, transport
from matchflow_matching.triton_matching import Family

CACHE = Path(__file__).resolve().parents[1] / "build" / "triton"
AMPERE, HOPPER = 80, 90
SHAPES = ((16, 16, 128), (16, 49, 128), (49, 49, 128), (32, 32, 512), (64, 128, 128), (128, 128, 512))
BYTES = {
    *("image_cells", "image_digits", "image_readable", "image_masks"),
    *("query_cells", "query_digits", "query_masks", "flags"),
}
INTEGERS = {"iterations_out", "flow_cells"}
COUNTS = {"images", "queries", "limit"}
NUMBERS = {"exponent_factor", "value_factor", "tolerance", "global_weight", "unreadable"}
PLAIN = {"MARGINALS": CROSS.value, "SPATIAL": False, "IMAGE_MASKED": False, "QUERY_MASKED": False, "FLOWS": 0}
OUTSIDE_REGISTERS = {"LDL", "STL", "LDS", "STS", "LDSM", "LDG", "STG", "LD", "ST", "BAR", "ATOM", "RED"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One cubin. iteration: instructions of the loop over Sinkhorn's iterations; tile: of the loop around it."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    iteration: Counter[str]
    tile: Counter[str]


def compiled(family: Family, architecture: int, **constants: Any) -> Compiled:
    """Compile a family ahead of time; the results stay in build/triton."""
    fixed = {**PLAIN, **family.constants(), "FAST": True, **constants}
    signature = {name: "constexpr" if name in fixed else _type(name) for name in transport.arg_names}
    pointers = [at for at, name in enumerate(transport.arg_names) if signature[name].startswith("*")]
    source = ASTSource(
        fn=transport,
        signature=signature,
        constexprs=fixed,
        attrs={(at,): [["tt.divisibility", 16]] for at in pointers},
    )
    before = triton.knobs.cache.dir
    triton.knobs.cache.dir = str(CACHE)
    try:
        kernel = triton.compile(
            source, target=GPUTarget("cuda", architecture, 32), options=family.options(fixed["FLOWS"])
        )
    finally:
        triton.knobs.cache.dir = before
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        loops = _loops(_tool("nvdisasm", "-c", file.name))
    inner = min((loop for loop in loops if loop["MUFU.RCP"] and loop["FFMA"]), key=lambda loop: loop.total())
    return Compiled(
        registers=int(_found(r"REG:(\d+)", usage)),
        stack_bytes=int(_found(r"STACK:(\d+)", usage)),
        shared_bytes=kernel.metadata.shared,
        iteration=inner,
        tile=max(loops, key=lambda loop: loop.total()),
    )


def tools_are_here() -> bool:
    """Return whether NVIDIA's assembler and disassembler came with Triton."""
    tools = (triton.knobs.nvidia.ptxas, triton.knobs.nvidia.cuobjdump, triton.knobs.nvidia.nvdisasm)
    return all(tool is not None and Path(tool.path).exists() for tool in tools)


def _type(name: str) -> str:
    if name in COUNTS:
        return "i32"
    if name in NUMBERS:
        return "fp32"
    return "*i8" if name in BYTES else "*i32" if name in INTEGERS else "*fp32"


def _tool(name: str, *arguments: str) -> str:
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found, pattern
    return found.group(1)


def _loops(assembly: str) -> list[Counter[str]]:
    """Return the instructions of every loop by name, MUFU by what it computes."""
    places: dict[str, int] = {}
    instructions: list[str] = []
    loops = []
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            places[label.group(1)] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?\s*([A-Z0-9_.]+)(.*);", line):
            name = found.group(1).split(".")
            instructions.append(".".join(name[:2]) if name[0] == "MUFU" else name[0])
            target = re.search(r"\.L_\w+", found.group(2))
            if name[0] == "BRA" and target and target.group(0) in places:
                loops.append(Counter(instructions[places[target.group(0)] :]))
    return loops


def table() -> str:
    """Return what every family takes, a line each."""
    lines = ["Rx Rq D | sm | warps registers stack shared | iteration: all FFMA SHFL MUFU outside | tile without it"]
    for shape in SHAPES:
        family = Family.of(*shape)
        assert family is not None
        for architecture in (AMPERE, HOPPER):
            found = compiled(family, architecture)
            loop = found.iteration
            special = sum(count for name, count in loop.items() if name.startswith("MUFU"))
            outside = sum(count for name, count in loop.items() if name in OUTSIDE_REGISTERS)
            usage = f"{family.warps} {found.registers} {found.stack_bytes} {found.shared_bytes}"
            counts = f"{loop.total()} {loop['FFMA']} {loop['SHFL']} {special} {outside}"
            rest = found.tile.total() - loop.total()
            lines.append(f"{shape} | {architecture} | {usage} | {counts} | {rest}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
