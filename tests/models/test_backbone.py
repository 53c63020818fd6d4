"""Backbones: names, weights, norms."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from morphfed.core.errors import ConfigError, ModelError
from morphfed.models.backbone import ModelConfig, build
from morphfed.models.norm import batch_norms, batch_to_group, norm_keys


def _build(image_size: int = 32, classes: int = 3, seed: int = 0, folder: Path | None = None, **keys: object):
    return build(ModelConfig(**keys), classes=classes, image_size=image_size, seed=seed, folder=folder)  # type: ignore[arg-type]


def test_same_seed_same_weights() -> None:
    one, two, other = (_build(name="resnet10t", seed=s).module.state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", ["resnet10t", "torchvision/squeezenet1_1", "mobilenetv2_100", "torchvision/resnet18"])
def test_logits_and_head(name: str) -> None:
    found = _build(image_size=64, classes=7, name=name)
    assert found.module(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    state = found.module.state_dict()
    assert found.head
    assert {state[k].shape[0] for k in found.head} == {7}


def test_backbone_from_a_file_keeps_a_fresh_head(tmp_path: Path) -> None:
    given = {k: torch.full_like(v, 0.25) for k, v in _build(name="resnet10t", classes=1000).module.state_dict().items()}
    save_file(given, tmp_path / "w.safetensors")
    found = _build(name="resnet10t", weights="w.safetensors", folder=tmp_path)
    state = found.module.state_dict()
    assert set(found.fresh) == set(found.head)
    assert (state["conv1.0.weight"] == 0.25).all()
    fresh = _build(name="resnet10t").module.state_dict()
    assert all(torch.equal(state[k], fresh[k]) for k in found.head)


def test_position_embedding_is_resized(tmp_path: Path) -> None:
    """A DINOv2-Small file is made at 518 px; a study at 98 px resizes its position embedding."""
    import timm

    big = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0).state_dict()
    save_file(big, tmp_path / "dinov2.safetensors")
    found = _build(image_size=98, name="vit_small_patch14_dinov2", weights=str(tmp_path / "dinov2.safetensors"))
    state = found.module.state_dict()
    assert state["pos_embed"].shape == (1, 1 + 7 * 7, 384)
    assert torch.equal(state["blocks.3.mlp.fc1.weight"], big["blocks.3.mlp.fc1.weight"])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("torchvision/squeezenet1_1", "squeezenet1_1.imagenet.safetensors"),
        ("mobilenetv2_100", "mobilenetv2_100.imagenet.safetensors"),
    ],
)
def test_real_weights(name: str, file: str, shared_data: Path) -> None:
    found = _build(name=name, weights=str(shared_data / "weights" / file))
    assert set(found.fresh) == set(found.head)


class TestErrors:
    def test_unknown_names(self) -> None:
        with pytest.raises(ConfigError, match="timm has no such model. Did you mean 'resnet34'"):
            _build(name="resnet_34")
        with pytest.raises(ConfigError, match="torchvision has no such model. Did you mean 'resnet18'"):
            _build(name="torchvision/resnet_18")

    def test_pickles_are_refused(self) -> None:
        with pytest.raises(ModelError, match="only .safetensors files are loaded"):
            _build(name="resnet10t", weights="model.pt")

    def test_missing_and_damaged_files(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"nowhere\.safetensors does not exist"):
            _build(name="resnet10t", weights="nowhere.safetensors", folder=tmp_path)
        (tmp_path / "bad.safetensors").write_bytes(b"not weights")
        with pytest.raises(ModelError, match="damaged or not a safetensors file"):
            _build(name="resnet10t", weights="bad.safetensors", folder=tmp_path)

    def test_weights_of_another_network_name_the_keys(self, tmp_path: Path) -> None:
        save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(
            ModelError, match=r"do not fit this model: \d+ keys .*missing.*1 keys \(conv1.weight\) unknown"
        ):
            _build(name="resnet10t", weights="w.safetensors", folder=tmp_path)

    def test_no_internet_says_which_file_to_fetch(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import huggingface_hub

        def offline(*args: object, **keys: object) -> str:
            raise ConnectionError("no route")

        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
        monkeypatch.setattr("socket.create_connection", offline)
        with pytest.raises(ModelError, match="hub cannot be reached.*fetch model.safetensors of 'timm/resnet10t"):
            _build(name="resnet10t", weights="pretrained")

    def test_too_small_images(self) -> None:
        with pytest.raises(ConfigError, match="cannot take images of 16 px"):
            _build(image_size=16, name="torchvision/squeezenet1_1")


class TestNorms:
    def test_group_norm_replaces_every_batch_norm_and_keeps_activations(self) -> None:
        found = _build(name="mobilenetv2_100", norm="group").module
        assert list(batch_norms(found)) == []
        assert any(isinstance(m, nn.GroupNorm) for m in found.modules())
        plain = _build(name="mobilenetv2_100").module

        def activations(model: nn.Module) -> int:
            return sum(isinstance(m, nn.ReLU6) for m in model.modules())

        assert activations(found) == activations(plain) > 10

    def test_groups_divide_the_channels(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(24), nn.BatchNorm2d(7), nn.BatchNorm2d(64))
        with torch.no_grad():
            model[0].weight.fill_(3.0)
        assert batch_to_group(model) == 3
        assert [m.num_groups for m in model] == [24, 7, 32]
        assert (model[0].weight == 3).all()

    def test_keys_by_type_not_by_name(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.Linear(2, 2)  # called like a norm, is none
                self.scale = nn.LayerNorm(2)  # a norm, not called like one

        assert norm_keys(Odd()) == {"scale.weight", "scale.bias"}
