"""U-Nets with an encoder of timm: weights, kinds of keys, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from morphfed.core.errors import ConfigError, ModelError
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.layout import Layout
from morphfed.models.saved import restore
from morphfed.models.weights import save

SMALL = {"name": "unet/resnet10t", "decoder": (16, 16, 8)}


def test_a_mask_of_the_pictures_size_and_the_same_seed_the_same_bytes() -> None:
    one, other, third = (build(ModelConfig(**SMALL), classes=3, image_size=32, seed=s) for s in (0, 0, 1))
    assert one.module.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 3, 32, 32)
    a, b, c = (x.module.state_dict() for x in (one, other, third))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert one.head == {"segmentation_head.0.weight", "segmentation_head.0.bias"}


@pytest.mark.parametrize("encoder", ["resnet10t", "convnext_atto", "efficientnet_b0"])
def test_the_encoder_takes_a_classifiers_weights(tmp_path: Path, encoder: str) -> None:
    torch.manual_seed(3)
    donor = timm.create_model(encoder, pretrained=False, num_classes=7)
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    config = ModelConfig(name=f"unet/{encoder}", weights="w.safetensors", decoder=(32, 16, 16, 8))
    found = build(config, classes=2, image_size=64, seed=0, folder=tmp_path)
    own, given = found.module.state_dict(), {k.replace(".", "_"): t for k, t in donor.state_dict().items()}
    filled = [k for k in own if k.startswith("encoder.model.") and k not in found.fresh]
    assert len(filled) > 20
    for key in filled:
        assert torch.equal(own[key], given[key.removeprefix("encoder.model.").replace(".", "_")]), key
    assert not any(key.startswith("encoder.") for key in found.fresh)
    # What the filled encoder computes is what the classifier computes there.
    images = torch.rand(1, 3, 64, 64)
    features = timm.create_model(encoder, pretrained=False, features_only=True)
    features.load_state_dict({k: given[k.replace(".", "_")] for k in features.state_dict()})
    with torch.no_grad():
        expected = features.eval()(images)
        seen = found.module.encoder.eval()(images)
    by_shape = {tuple(t.shape): t for t in seen}
    shared = [t for t in expected if tuple(t.shape) in by_shape]
    assert len(shared) >= 3
    assert all(torch.equal(t, by_shape[tuple(t.shape)]) for t in shared)


@pytest.mark.shared
def test_real_weights(shared_data: Path) -> None:
    path = shared_data / "weights" / "mobilenetv2_100.imagenet.safetensors"
    found = build(ModelConfig(name="unet/mobilenetv2_100", weights=str(path)), classes=3, image_size=96, seed=0)
    own, given = found.module.state_dict(), load_file(path)
    taken = [k for k in given if f"encoder.model.{k}" in own]
    assert set(given) - set(taken) == {k for k in given if k.startswith(("conv_head.", "bn2."))}
    assert all(torch.equal(own[f"encoder.model.{k}"], given[k]) for k in taken)


def test_a_size_that_is_no_multiple_of_the_stride() -> None:
    found = build(ModelConfig(**SMALL), classes=2, image_size=50, seed=0)
    assert found.module.eval()(torch.zeros(1, 3, 50, 50)).shape == (1, 2, 50, 50)


def test_normalisation_is_found_by_type() -> None:
    found = build(ModelConfig(**SMALL), classes=3, image_size=32, seed=0)
    layout = Layout.of(found.module, found.head)
    assert any(k.startswith("decoder.") for k in layout.norms)
    assert any(k.startswith("encoder.") for k in layout.norms)
    assert layout.statistics < layout.norms
    assert layout.head == found.head
    group = build(ModelConfig(**SMALL, norm="group"), classes=3, image_size=32, seed=0).module
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in group.modules())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "unet/resnet10"}, "no such model"),
        ({"name": "unet/vit_tiny_patch16_224"}, "cannot be the encoder"),
        ({"name": "unet/resnet10t", "dropout": 0.1}, "has no dropout"),
    ],
)
def test_networks_that_cannot_be(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(ModelConfig(**keys), classes=2, image_size=32, seed=0)


def test_weights_of_another_network(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        build(ModelConfig(**SMALL, weights="w.safetensors"), classes=2, image_size=32, seed=0, folder=tmp_path)


def test_a_saved_model_is_built_again(tmp_path: Path) -> None:
    import json

    config = ModelConfig(**SMALL)
    found = build(config, classes=3, image_size=32, seed=5)
    card = {
        "architecture": config.model_dump(mode="json", exclude={"weights"}),
        "task": "segmentation",
        "classes": ["background", "nucleus", "cytoplasm"],
        "image_size": 32,
    }
    save(tmp_path / "m.safetensors", found.module.state_dict(), {"morphfed": json.dumps(card)})
    again, _ = restore(tmp_path / "m.safetensors")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module(images), found.module.eval()(images))
