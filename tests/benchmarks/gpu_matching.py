"""`make bench-gpu`: 64 queries against 1,000 candidates on an NVIDIA GPU, beside its floors and the released algorithm.

A floor is the time that the least possible work of one kind takes at the device's peak rate; the largest binds:

    bytes     cells, scales, digits and embeddings of both sides once, and 23 bytes of results per pair
    bytewise  int8 operations of tensor cores: 2 D (Rx Rq + 3 Rx + 3 Rq + 9) per pair, similarities and attention
    single    float32 operations at one a lane and clock, a fused multiply-add counted as one: per pair 4 Rx Rq to make
              the kernel and the score, and per iteration 2 Rx Rq for the two products, Rx + Rq to scale, 2 Rx to stop
    special   exponentials and reciprocals: Rx Rq + iterations (Rx + Rq) per pair

at the mean number of iterations of these pairs. What a floor leaves out: conversions, shuffles between lanes, waiting
for the slowest pair of a warp, the launch. Times are medians of graph replays, so without the launch's work on the
host; `call_ms` has that too. Queries and candidates fit the device's cache: the first launch apart, no memory is read.

`--tune` tries register limits and group sizes for 4x4x128 and prints their times instead.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bench_features import perturbed, sample_batch
from matching_shapes import OTHER_SHAPES, kept_features
from released import Released
from report import write_report

from matchflow_matching import MatchSettings, match
from matchflow_matching.torch_matching import DeviceBatch, match_many

if TYPE_CHECKING:
    from collections.abc import Callable

    from matchflow_matching import FeatureBatch

QUERIES, CANDIDATES = 64, 1_000
REPLAYS, CALLS, TURNS = 50, 20, 3
RESULT_BYTES = 23
DIGITS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What a device can do at most: bytes, int8 operations and float32 operations (two per multiply-add) a second.

    lanes_per_special: float32 lanes to one unit for exponentials and reciprocals.
    """

    bytes_per_s: float
    int8_per_s: float
    float32_per_s: float
    lanes_per_special: int = 8
    source: str = "data sheet"


# Dense rates of the vendor's data sheets, by a part of the name that PyTorch reports; the first that fits.
KNOWN = {
    "H200": Peaks(bytes_per_s=4.8e12, int8_per_s=1979e12, float32_per_s=66.9e12),
    "H100 PCIe": Peaks(bytes_per_s=2.0e12, int8_per_s=1513e12, float32_per_s=51.2e12),
    "H100": Peaks(bytes_per_s=3.35e12, int8_per_s=1979e12, float32_per_s=66.9e12),
    "A100": Peaks(bytes_per_s=2.04e12, int8_per_s=624e12, float32_per_s=19.5e12, lanes_per_special=4),
    "L40S": Peaks(bytes_per_s=0.864e12, int8_per_s=733e12, float32_per_s=91.6e12),
    "L4": Peaks(bytes_per_s=0.3e12, int8_per_s=242e12, float32_per_s=30.3e12),
    "T4": Peaks(bytes_per_s=0.32e12, int8_per_s=130e12, float32_per_s=8.1e12, lanes_per_special=4),
}


def peaks_of(name: str) -> Peaks:
    """Return a device's peaks, measured on the spot where its name is not known."""
    return next((peaks for part, peaks in KNOWN.items() if part in name), None) or measured_peaks()


def measured_peaks() -> Peaks:
    """Measure a copy and two matrix products; a product of float32 in full precision uses no tensor cores."""
    source = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    side = 8192
    bytewise = torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda")
    single = torch.randn(side, side, device="cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    return Peaks(
        bytes_per_s=2 * source.numel() / seconds(lambda: target.copy_(source)),
        int8_per_s=2 * side**3 / seconds(lambda: torch._int_mm(bytewise, bytewise)),
        float32_per_s=2 * side**3 / seconds(lambda: single @ single),
        source="measured: a copy and matrix products",
    )


def floors_s(work: DeviceBatch, other: DeviceBatch, iterations: float, peaks: Peaks) -> dict[str, float]:
    """Return the seconds of every floor for all pairs of two batches, at a mean number of iterations."""
    rq, rx, dim = work.cells_per_image, other.cells_per_image, work.dim
    pairs = len(work) * len(other)
    held = sum(len(batch) * (batch.cells_per_image * (dim + 4) + dim * (DIGITS + 4)) for batch in (work, other))
    single = 4 * rx * rq + iterations * (2 * rx * rq + rx + rq + 2 * rx)
    special = rx * rq + iterations * (rx + rq)
    lanes_per_s = peaks.float32_per_s / 2
    return {
        "bytes": (held + RESULT_BYTES * pairs) / peaks.bytes_per_s,
        "bytewise": pairs * 2 * dim * (rx * rq + DIGITS * (rx + rq) + DIGITS**2) / peaks.int8_per_s,
        "single": pairs * single / lanes_per_s,
        "special": pairs * special / (lanes_per_s / peaks.lanes_per_special),
    }


def seconds(call: Callable[[], object]) -> float:
    """Return the median seconds of a call's work on the device, replayed from a graph; on a processor, of the call."""
    if not torch.cuda.is_available():
        return host_seconds(call)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    event: Any = torch.cuda.Event
    for _ in range(REPLAYS):
        start, end = event(enable_timing=True), event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return float(np.median(times))


def host_seconds(call: Callable[[], object], turns: int = CALLS) -> float:
    """Return the median seconds from the call until the device has done its work."""
    call()
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def released_on(device: str, queries: FeatureBatch, candidates: FeatureBatch) -> list[Released]:
    """Return the released algorithm for every query, with its tensors on the device; the candidates' are there once."""
    first = on_device(Released.of(queries[0], candidates), device)
    found = []
    for index in range(len(queries)):
        own = on_device(Released.of(queries[index], candidates.take(slice(0, 0))), device)
        found.append(replace(own, image_cells=first.image_cells, image_embeddings=first.image_embeddings))
    return found


def on_device(released: Released, device: str) -> Released:
    """Return the same with its tensors on a device."""
    return replace(released, **{field.name: getattr(released, field.name).to(device) for field in fields(released)})


def measure(
    queries: FeatureBatch, candidates: FeatureBatch, device: str, peaks: Peaks, turns: int = TURNS
) -> dict[str, Any]:
    """Return times, floors and agreement for one shape."""
    chosen = MatchSettings()
    ours, others = DeviceBatch.upload(queries, device), DeviceBatch.upload(candidates, device)
    found = match_many(ours, others, chosen)
    expected = [match(queries[index], candidates, chosen) for index in range(len(queries))]
    scores, counts = (np.stack([getattr(each, name) for each in expected]) for name in ("score", "iterations"))
    iterations = float(found.iterations.float().mean())
    floors = floors_s(ours, others, iterations, peaks)
    device_s = seconds(lambda: match_many(ours, others, chosen))
    released = released_on(device, queries, candidates)

    def every(*, early_stop: bool) -> None:
        for each in released:
            each.score(early_stop=early_stop)

    early_s, full_s = (host_seconds(partial(every, early_stop=stop), turns) for stop in (True, False))
    binding = max(floors, key=lambda name: floors[name])
    return {
        "ms": device_s * 1e3,
        "call_ms": host_seconds(lambda: match_many(ours, others, chosen)) * 1e3,
        "torch_ms": host_seconds(lambda: match_many(ours, others, chosen, engine="torch"), turns) * 1e3,
        "released_ms": early_s * 1e3,
        "released_full_ms": full_s * 1e3,
        "floors_ms": {name: floor * 1e3 for name, floor in floors.items()},
        "binding_floor": binding,
        "fraction_of_floor": floors[binding] / device_s,
        "speedup_vs_released": early_s / device_s,
        "speedup_vs_released_full": full_s / device_s,
        "mean_iterations": iterations,
        "largest_score_difference": float(np.abs(found.score.cpu().numpy() - scores).max()),
        "pairs_of_other_iterations": int((found.iterations.cpu().numpy() != counts).sum()),
        "unconverged": int((~found.converged).sum()),
    }


def batches(name: str) -> tuple[FeatureBatch, FeatureBatch]:
    """Return queries and candidates of a shape: sample images, their cells and embeddings moved a little."""
    images = kept_features(name) if name in OTHER_SHAPES else sample_batch()
    return perturbed(images, QUERIES, seed=1), perturbed(images, CANDIDATES)


def tune() -> None:
    """Print the time of 4x4x128 for every register limit and group size, fastest first."""
    from matchflow_matching.torch_matching import _task  # noqa: PLC0415
    from matchflow_matching.triton_matching import Family, launch  # noqa: PLC0415

    queries, candidates = (DeviceBatch.upload(batch, "cuda") for batch in batches("4x4x128"))
    task = _task(queries, candidates, MatchSettings(), grids=(None, None), masks=(None, None), flows=0)
    family = Family.of(candidates.cells_per_image, queries.cells_per_image, queries.padded_dim)
    assert family is not None
    times = {}
    for registers, groups in product((112, 128, 144, 168, 200, 255), (1, 2, 4, 8)):
        tried = replace(family, registers=registers, groups=groups)
        times[registers, groups] = seconds(partial(launch, task, tried)) * 1e6
    for (registers, groups), microseconds in sorted(times.items(), key=lambda item: item[1]):
        print(f"{microseconds:8.1f} us   registers {registers}   groups {groups}")


def main() -> None:
    """Measure every shape and write build/bench/gpu_matching.json, where there is a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="time the kernel's parameters instead")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("No CUDA device is at hand: nothing was measured, and no report was written.")
        return
    if arguments.tune:
        tune()
        return
    name = torch.cuda.get_device_name()
    peaks = peaks_of(name)
    shapes = {shape: measure(*batches(shape), "cuda", peaks) for shape in ("4x4x128", *OTHER_SHAPES)}
    figures = {"gpu_fraction_of_floor": shapes["4x4x128"]["fraction_of_floor"]}
    for shape, found in shapes.items():
        figures[f"gpu_ms_{shape}"] = found["ms"]
        figures[f"gpu_speedup_vs_released_{shape}"] = found["speedup_vs_released"]
        figures[f"gpu_fraction_of_floor_{shape}"] = found["fraction_of_floor"]
    figures["gpu_largest_score_difference"] = max(found["largest_score_difference"] for found in shapes.values())
    device = torch.cuda.get_device_properties(0)
    write_report(
        "gpu_matching",
        figures=figures,
        details={
            "device": {
                "name": name,
                "multiprocessors": device.multi_processor_count,
                "memory_bytes": device.total_memory,
                "cuda": torch.version.cuda,
            },
            "peaks": {field.name: getattr(peaks, field.name) for field in fields(peaks)},
            "queries": QUERIES,
            "candidates": CANDIDATES,
            "settings": "the paper's, tolerance 1e-4",
            "shapes": shapes,
        },
        command="make bench-gpu",
    )


if __name__ == "__main__":
    main()
