"""Cutting a network before its classifier."""

from __future__ import annotations

import pytest
import torch

from morphfed.models.backbone import ModelConfig, build
from morphfed.models.features import HeadOnly, cut_before_classifier, features_of, fingerprint
from morphfed.models.layout import Layout, head_module


def _build(name: str, seed: int = 0, size: int = 64, **keys: object):
    return build(ModelConfig(name=name, **keys), classes=3, image_size=size, seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [
        ("resnet10t", 64, 512),
        ("mobilenetv2_100", 64, 1280),
        ("vit_small_patch14_dinov2", 28, 384),
        ("convnext_atto", 64, 320),  # the classifier is nested: head.fc
        ("torchvision/mobilenet_v2", 64, 1280),  # the classifier has a number for a name: classifier.1
        ("torchvision/resnet18", 64, 512),
    ],
)
def test_features_then_head_are_the_whole_network(name: str, size: int, width: int) -> None:
    found = _build(name, size=size)
    cut = cut_before_classifier(found, image_size=size)
    assert cut is not None
    images = torch.randn(3, 3, size, size)
    features = features_of(found.module, cut, images)
    assert features.shape == (3, width)
    head = HeadOnly(found.module, cut).eval()
    with torch.no_grad():
        torch.testing.assert_close(head(features), found.module.eval()(images))
    # The same keys and the same memory: training the head trains the network.
    assert set(head.state_dict()) == set(found.head)
    assert all(head.state_dict()[k].data_ptr() == found.module.state_dict()[k].data_ptr() for k in found.head)
    layout = Layout.of(head, found.head)
    assert head_module(head, layout) is found.module.get_submodule(cut.classifier)


def test_networks_whose_logits_are_something_else_are_not_cut() -> None:
    # SqueezeNet: a convolution over the map, then ReLU and pooling. Distilled DeiT: the mean of two classifiers.
    assert cut_before_classifier(_build("torchvision/squeezenet1_1"), image_size=64) is None
    found = _build("deit_tiny_distilled_patch16_224", size=32)
    assert cut_before_classifier(found, image_size=32) is None


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [("resnet10t", {"dropout": 0.3}, 0.3), ("torchvision/mobilenet_v2", {}, 0.2), ("resnet10t", {}, 0.0)],
)
def test_dropout_goes_with_the_head(name: str, keys: dict[str, float], expected: float) -> None:
    found = _build(name, **keys)
    cut = cut_before_classifier(found, image_size=64)
    assert cut is not None
    assert cut.dropout == expected
    head = HeadOnly(found.module, cut)
    features = torch.ones(1, cut.width)
    torch.manual_seed(0)
    assert torch.equal(head.train()(features), head(features)) == (expected == 0)
    head.eval()
    assert torch.equal(head(features), head(features))


def test_fingerprint_is_of_the_backbone_alone() -> None:
    one, other = _build("resnet10t"), _build("resnet10t", seed=1)
    before = fingerprint(one)
    with torch.no_grad():
        one.module.state_dict()["fc.weight"].add_(1)
    assert fingerprint(one) == before
    assert fingerprint(other) != before
    with torch.no_grad():
        one.module.state_dict()["layer4.0.bn2.running_mean"][0] += 1e-6
    assert fingerprint(one) != before
