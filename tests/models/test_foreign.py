"""Weights as others publish them: generated files with the published names and shapes."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from morphfed.cli import call
from morphfed.core.errors import ConfigError, ModelError
from morphfed.models.backbone import Backbone, ModelConfig, build
from morphfed.models.foreign import plain_names

DINOV2 = "vit_small_patch14_dinov2"
Weights = dict[str, torch.Tensor]


def vit_s14(tokens: int) -> Weights:
    """A ViT-S/14 with DINOv2's own key names, written out from its definition; ``tokens`` of position embedding."""
    d, g = 384, torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, tokens, d),
        "mask_token": (1, d),
        "patch_embed.proj.weight": (d, 3, 14, 14),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(12):
        layers = {"attn.qkv": (3 * d, d), "attn.proj": (d, d), "mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, shape in layers.items():
            shapes[f"blocks.{i}.{name}.weight"], shapes[f"blocks.{i}.{name}.bias"] = shape, shape[:1]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"blocks.{i}.{name}"] = (d,)
    return {name: 0.02 * torch.randn(shape, generator=g) for name, shape in shapes.items()}


def dinobloom() -> Weights:
    """The teacher of a DinoBloom-S checkpoint: 224 px (257 tokens), a prefix, and two heads of the pretext task."""
    found = {f"backbone.{k}": v for k, v in vit_s14(257).items()}
    for head in ("dino_head", "ibot_head"):
        found[f"{head}.mlp.0.weight"] = torch.zeros(8, 384)
        found[f"{head}.last_layer.weight_v"] = torch.zeros(4, 8)
    return found


def chunked() -> Weights:
    """DINOv2 as it is trained with ``block_chunks = 4``: three blocks a chunk, numbered through."""
    return {
        (f"blocks.{int(k.split('.')[1]) // 3}." + k.removeprefix("blocks.") if k.startswith("blocks.") else k): v
        for k, v in vit_s14(257).items()
    }


def _load(path: Path, size: int = 98) -> Backbone:
    return build(ModelConfig(name=DINOV2, weights=str(path)), classes=3, image_size=size, seed=0)


@pytest.mark.parametrize(
    ("make", "tokens"),
    [(lambda: vit_s14(1370), 1370), (dinobloom, 257), (chunked, 257)],
    ids=["518px", "bloom", "chunked"],
)
def test_every_weight_arrives_and_the_position_embedding_is_resized(
    make: Callable[[], Weights], tokens: int, tmp_path: Path
) -> None:
    save_file(make(), tmp_path / "w.safetensors")
    found = _load(tmp_path / "w.safetensors")
    assert set(found.fresh) == set(found.head)
    state, plain = found.module.state_dict(), vit_s14(tokens)
    assert torch.equal(state["blocks.11.attn.qkv.weight"], plain["blocks.11.attn.qkv.weight"])
    assert torch.equal(state["norm.bias"], plain["norm.bias"])
    assert state["pos_embed"].shape == (1, 1 + 7 * 7, 384)
    assert torch.equal(state["pos_embed"][:, 0], plain["pos_embed"][:, 0])  # the class token has no place to move from
    # Antialiased bicubic resizing, as timm does it; torch's own is the reference.
    side = int((tokens - 1) ** 0.5)
    grid = plain["pos_embed"][:, 1:].reshape(1, side, side, 384).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(grid, (7, 7), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(state["pos_embed"][:, 1:], small.permute(0, 2, 3, 1).reshape(1, 49, 384))


def test_resnet34_in_timms_layout_with_a_thousand_classes(tmp_path: Path) -> None:
    import timm

    given = timm.create_model("resnet34", pretrained=False).state_dict()
    save_file(given, tmp_path / "r34.safetensors")
    config = ModelConfig(name="resnet34", weights=str(tmp_path / "r34.safetensors"))
    found = build(config, classes=5, image_size=64, seed=0)
    assert set(found.fresh) == {"fc.weight", "fc.bias"}
    state = found.module.state_dict()
    assert all(torch.equal(state[k], given[k]) for k in given if not k.startswith("fc."))


def test_names_of_other_networks_are_left_alone() -> None:
    mobile = {"blocks.0.0.conv_dw.weight": torch.zeros(1), "blocks.1.0.conv_pw.weight": torch.zeros(1)}
    assert plain_names(mobile) == mobile
    half = {"backbone.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(plain_names(half)) == set(half)


@pytest.mark.parametrize(("size", "near"), [(96, "84 or 98"), (224 + 1, "224 or 238")])
def test_sizes_between_patches_name_their_neighbours(size: int, near: str) -> None:
    with pytest.raises(ConfigError, match="sees patches of 14 px") as caught:
        build(ModelConfig(name=DINOV2), classes=2, image_size=size, seed=0)
    assert near in caught.value.fix


class TestConvert:
    def test_a_nested_teacher_becomes_a_file_that_loads(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save({"teacher": dinobloom()}, tmp_path / "DinoBloom-S.pth")
        assert call(["models", "convert", str(tmp_path / "DinoBloom-S.pth")]) == 0
        assert "wrote" in capsys.readouterr().out
        assert set(load_file(tmp_path / "DinoBloom-S.safetensors")) == set(vit_s14(257))
        assert set(_load(tmp_path / "DinoBloom-S.safetensors").fresh) == {"head.weight", "head.bias"}
        assert call(["models", "convert", str(tmp_path / "DinoBloom-S.pth")]) == 7  # exists

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "ran",))

        torch.save({"model": {"w": torch.zeros(1)}, "more": Evil()}, tmp_path / "evil.pth")
        assert call(["models", "convert", str(tmp_path / "evil.pth")]) == 4
        assert not (tmp_path / "ran").exists()
        assert not (tmp_path / "evil.safetensors").exists()

    def test_what_holds_no_weights(self, tmp_path: Path) -> None:
        from morphfed.models.foreign import read_pickle

        torch.save({"epoch": 3}, tmp_path / "none.pth")
        with pytest.raises(ModelError, match="holds no named tensors"):
            read_pickle(tmp_path / "none.pth")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps([1])[:-1])
        with pytest.raises(ModelError, match=r"plain\.pth"):
            read_pickle(tmp_path / "plain.pth")
        with pytest.raises(ModelError, match="does not exist"):
            read_pickle(tmp_path / "nowhere.pth")

    def test_a_study_with_a_pickle_says_how_to_convert_it(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"only \.safetensors") as caught:
            _load(tmp_path / "DinoBloom-S.pth")
        assert "morphfed models convert DinoBloom-S.pth" in caught.value.fix
