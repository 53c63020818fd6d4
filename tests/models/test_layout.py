"""What a network's keys are, for a network written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from morphfed.models.layout import Layout, head_module


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))


def test_every_kind_of_key() -> None:
    layout = Layout.of(_network(), head=("4.weight", "4.bias"))
    assert layout.order == (
        *("0.weight", "0.bias"),
        *("1.weight", "1.bias", "1.running_mean", "1.running_var"),
        *("4.weight", "4.bias"),
    )
    assert layout.statistics == {"1.running_mean", "1.running_var"}
    assert layout.parameters == set(layout.order) - layout.statistics
    assert layout.norms == {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert layout.head == {"4.weight", "4.bias"}
    assert layout.without(layout.norms) == ("0.weight", "0.bias", "4.weight", "4.bias")


def test_norms_are_found_by_type_whatever_their_name() -> None:
    odd = nn.ModuleDict({"classifier": nn.BatchNorm1d(3), "bn": nn.Linear(3, 2)})
    assert {k.split(".")[0] for k in Layout.of(odd).norms} == {"classifier"}


def test_what_is_not_trained_is_in_no_set_nor_are_the_statistics_of_its_norms() -> None:
    model = _network()
    for layer in (model[0], model[1]):
        layer.requires_grad_(False)
    layout = Layout.of(model, head=("4.weight", "4.bias"))
    assert layout.order == ("4.weight", "4.bias")
    assert not layout.norms
    assert not layout.statistics


def test_statistics_of_a_norm_without_weights_move_with_its_network() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    assert Layout.of(model).statistics == {"1.running_mean", "1.running_var"}


def test_head_module() -> None:
    model = _network()
    assert head_module(model, Layout.of(model, head=("4.weight", "4.bias"))) is model[4]
    with pytest.raises(ValueError, match="not known"):
        head_module(model, Layout.of(model))


def test_frozen_norms_do_not_move_in_training() -> None:
    from morphfed.training.trainer import _train_mode

    model = _network()
    model[1].requires_grad_(False)
    before = model[1].running_mean.clone()
    _train_mode(model)
    model[1](torch.randn(8, 4, 2, 2) + 3.0)
    assert torch.equal(model[1].running_mean, before)
    assert model.training
    assert not model[1].training
