"""What is trained, and that nothing else moves or travels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from morphfed.core.config import validate
from morphfed.core.errors import ConfigError, MissingExtraError
from morphfed.core.types import nbytes
from morphfed.models.backbone import Backbone, ModelConfig, build
from morphfed.models.layout import Layout
from morphfed.models.tuning import blocks_of, merge_lora, refuse_nonsense
from morphfed.training.config import TrainConfig
from morphfed.training.dataset import ImageSet
from morphfed.training.optimise import make_optimizer
from morphfed.training.trainer import Trainer

SIZES = {"vit_small_patch14_dinov2": 28}


def _build(name: str, tune: str, **keys: object) -> Backbone:
    config = ModelConfig(name=name, tune=tune, **keys)  # type: ignore[arg-type]
    return build(config, classes=3, image_size=SIZES.get(name, 64), seed=0)


def _trained(found: Backbone) -> set[str]:
    return {name for name, p in found.module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "name", ["resnet34", "vit_small_patch14_dinov2", "mobilenetv2_100", "torchvision/squeezenet1_1"]
)
def test_head_only(name: str) -> None:
    found = _build(name, "head")
    layout = Layout.of(found.module, found.head)
    assert _trained(found) == set(found.head) == set(layout.order)
    assert layout.statistics == frozenset()


@pytest.mark.parametrize(
    ("name", "tune", "parts"),
    [
        # Read off the networks' definitions: ResNet-34 has 3 + 4 + 6 + 3 blocks.
        ("resnet34", "last-2", {"layer4.1", "layer4.2", "fc"}),
        ("resnet34", "last-4", {"layer3.5", "layer4.0", "layer4.1", "layer4.2", "fc"}),
        ("vit_small_patch14_dinov2", "last-1", {"blocks.11", "norm", "head"}),
        # conv_head and bn2 follow the last block of a MobileNetV2 and belong to it.
        ("mobilenetv2_100", "last-1", {"blocks.6.0", "conv_head", "bn2", "classifier"}),
        ("torchvision/squeezenet1_1", "last-2", {"features.11", "features.12", "classifier.1"}),
        ("torchvision/resnet18", "last-1", {"layer4.1", "fc"}),
        ("torchvision/mobilenet_v2", "last-1", {"features.18", "classifier.1"}),
    ],
)
def test_last_blocks(name: str, tune: str, parts: set[str]) -> None:
    found = _build(name, tune)
    expected = {k for k, _ in found.module.named_parameters() if any(k.startswith(p + ".") for p in parts)}
    assert _trained(found) == expected
    # Statistics of batch norms travel with their block and with no other.
    statistics = Layout.of(found.module, found.head).statistics
    assert all(any(k.startswith(p + ".") for p in parts) for k in statistics)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet34", 16), ("vit_small_patch14_dinov2", 12), ("mobilenetv2_100", 17), ("torchvision/resnet18", 8)],
)
def test_all_blocks_are_found(name: str, count: int) -> None:
    found = _build(name, "full")
    *blocks, rest = blocks_of(found.module, name, found.head)
    assert len(blocks) == count
    assert set(rest) == set(found.head)


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(ConfigError, match="'resnet10t' has 4 blocks") as caught:
        _build("resnet10t", "last-5")
    assert "'last-1' to 'last-4'" in caught.value.fix


def test_a_network_whose_blocks_are_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match="not known which layers of 'torchvision/shufflenet"):
        _build("torchvision/shufflenet_v2_x0_5", "last-1")


class TestLora:
    def test_starts_as_the_plain_network_and_trains_only_updates_and_head(self) -> None:
        plain, found = _build("resnet10t", "full"), _build("resnet10t", "lora", lora_rank=4)
        images = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(found.module.eval()(images), plain.module.eval()(images))
        trained = _trained(found)
        assert {k for k in trained if "lora_" not in k} == set(found.head)
        assert not any(k.startswith(("conv1", "bn1")) for k in trained)
        layout = Layout.of(found.module, found.head)
        assert set(layout.order) == trained  # frozen norms keep their statistics at home

    def test_size_by_hand(self) -> None:
        """One transformer block of width d: qkv, proj, fc1, fc2 have rank-r pairs of r (in + out) numbers."""
        found, d, r = _build("vit_small_patch14_dinov2", "lora", lora_rank=2), 384, 2
        block = r * ((d + 3 * d) + (d + d) + (d + 4 * d) + (4 * d + d))
        head = d * 3 + 3 if found.module.head.in_features == d else 2 * d * 3 + 3
        state = found.module.state_dict()
        going = Layout.of(found.module, found.head).order
        assert nbytes({k: state[k] for k in going}) == 4 * (12 * block + head)

    def test_merged_weight_is_w_plus_scaled_ba(self) -> None:
        found = _build("vit_small_patch14_dinov2", "lora", lora_rank=2, lora_alpha=6.0)
        state = found.module.state_dict()
        torch.manual_seed(1)
        for key in state:
            if "lora_B" in key:
                state[key].normal_()
        at = "blocks.5.mlp.fc1"
        w, a, b = (
            state[f"{at}.{k}"].numpy().copy()
            for k in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
        )
        images = torch.randn(2, 3, 28, 28)
        with torch.no_grad():
            before = found.module.eval()(images)
            assert merge_lora(found.module) == 12 * 4
            after = found.module(images)
        merged = found.module.state_dict()
        np.testing.assert_allclose(merged[f"{at}.weight"], w + (6.0 / 2) * b @ a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
        assert set(merged) == set(_build("vit_small_patch14_dinov2", "full").module.state_dict())

    def test_depthwise_convolutions_are_left_alone(self) -> None:
        found = _build("mobilenetv2_100", "lora")
        assert any("conv_pw.lora_A" in k for k in _trained(found))
        assert not any("conv_dw.lora_A" in k for k in _trained(found))

    def test_same_seed_same_bytes(self) -> None:
        one, two = (_build("resnet10t", "lora").module.state_dict() for _ in range(2))
        assert all(torch.equal(one[k], two[k]) for k in one)

    def test_without_the_library_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(MissingExtraError, match="peft, which is not installed") as caught:
            _build("resnet10t", "lora")
        assert "morphfed[tuning]" in caught.value.fix


@pytest.mark.parametrize("tune", ["head", "last-1", "lora"])
def test_training_moves_what_is_tuned_and_nothing_else(tune: str) -> None:
    found = _build("resnet10t", tune)
    layout = Layout.of(found.module, found.head)
    with torch.no_grad():  # fresh residual branches end in a norm of weight 0, which passes no gradient on
        for layer in found.module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.fill_(1.0)
    before = {k: v.clone() for k, v in found.module.state_dict().items()}

    class Pictures:
        pixels = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)

        def gather(self, rows: np.ndarray) -> np.ndarray:
            return self.pixels[rows]

    ids = np.array(list("abcdefgh"), dtype=object)
    data = ImageSet(Pictures(), np.arange(8), np.arange(8) % 3, 3, ids, ids)
    config = TrainConfig(precision="fp32", batch_size=4, local_epochs=2)
    trainer = Trainer(config, mean=found.mean, std=found.std, device=torch.device("cpu"), seed=0)
    trainer.fit(found.module, make_optimizer(config, found.module), data, site="a", round_number=1, rounds=1)
    after = found.module.state_dict()
    moved = {k for k in after if after[k].is_floating_point() and not torch.equal(after[k], before[k])}
    assert moved == set(layout.order)


class TestNonsense:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"tune": "head"}, "never trained"),
            ({"tune": "lora", "weights": "w.safetensors", "norm": "group"}, "need training to recover"),
            ({"tune": "head", "weights": "w.safetensors", "norm": "local"}, "keep nothing at the sites"),
            ({"tune": "lora", "weights": "w.safetensors", "norm": "local"}, "keep nothing at the sites"),
        ],
    )
    def test_refused(self, keys: dict[str, str], message: str) -> None:
        with pytest.raises(ConfigError, match=f"arms.a: .*{message}"):
            refuse_nonsense(ModelConfig(**keys), where="arms.a")  # type: ignore[arg-type]

    def test_allowed(self) -> None:
        refuse_nonsense(ModelConfig(tune="last-2", weights="w.safetensors", norm="local"), where="arms.a")
        refuse_nonsense(ModelConfig(norm="group"), where="arms.a")

    @pytest.mark.parametrize("value", ["last", "last-0", "last--1", "heads", ""])
    def test_unknown_mode(self, value: str) -> None:
        with pytest.raises(ConfigError, match="'tune' = .*must be 'full', 'head', 'lora' or 'last-N'"):
            validate(ModelConfig, {"tune": value}, where="study.toml")


def test_saved_model_is_rebuilt_from_its_card_and_merged(tmp_path: Path) -> None:
    import json

    from morphfed.models.saved import merge, restore

    found = _build("resnet10t", "lora", lora_rank=3)
    with torch.no_grad():
        for name, p in found.module.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    card = {
        "architecture": ModelConfig(name="resnet10t", tune="lora", lora_rank=3).model_dump(exclude={"weights"}),
        "classes": ["a", "b", "c"],
        "image_size": 64,
    }
    save_file(found.module.state_dict(), tmp_path / "m.safetensors", {"morphfed": json.dumps(card)})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = found.module.eval()(images)
        again, _ = restore(tmp_path / "m.safetensors")
        assert torch.equal(again.module(images), expected)
        assert merge(tmp_path / "m.safetensors", tmp_path / "plain.safetensors") > 4
        plain, read = restore(tmp_path / "plain.safetensors")
        torch.testing.assert_close(plain.module(images), expected, rtol=1e-4, atol=1e-4)
    assert read["architecture"]["tune"] == "full"
    assert set(plain.module.state_dict()) == set(_build("resnet10t", "full").module.state_dict())
