"""The gate between a graph and a bundle: ONNX Runtime must give what the source model gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from matchflow_bundle.encoder import OUTPUT_NAMES, open_session, run_session
from matchflow_bundle.manifest import ParityReport
from matchflow_exporter.errors import ParityError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

BATCH_SIZES = (1, 2, 7)


def check_parity(source: nn.Module, model: bytes, images: NDArray[np.uint8], tolerance: float) -> ParityReport:
    """Compare `source` in torch with `model` in ONNX Runtime on images [n, H, W, 3] at batch sizes 1, 2 and 7.

    The images are gone through in order, from the first again when they run out. Raises ParityError when a component
    of a unit vector differs by more than `tolerance`, or is not finite.
    """
    session = open_session(model)
    worst = np.zeros(len(OUTPUT_NAMES))
    start = 0
    for size in BATCH_SIZES:
        batch = images[np.arange(start, start + size) % len(images)]
        start += size
        with torch.inference_mode():
            wanted = [output.numpy() for output in source(torch.from_numpy(batch))]
        for index, (got, want) in enumerate(zip(run_session(session, batch), wanted, strict=True)):
            if got.shape != want.shape:
                raise ParityError(f"expected {OUTPUT_NAMES[index]} {want.shape} at batch {size}; got {got.shape}")
            worst[index] = np.maximum(worst[index], np.abs(got - want).max())
    if not (worst <= tolerance).all():
        raise ParityError(
            f"ONNX Runtime is off from torch by {worst[0]:.3g} in the embedding and {worst[1]:.3g} in the cells "
            f"at batch sizes {BATCH_SIZES}; expected at most {tolerance:.3g}"
        )
    return ParityReport(
        batch_sizes=BATCH_SIZES,
        images=min(start, len(images)),
        max_abs_embedding=float(worst[0]),
        max_abs_cells=float(worst[1]),
        tolerance=tolerance,
    )
