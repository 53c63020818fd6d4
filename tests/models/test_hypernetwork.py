"""The hyper-network: its first weights, its heads written out, its size, and how far a step moves what it makes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from morphfed.core.types import Tensors
from morphfed.models.hypernetwork import CHUNK_EMBEDDING, ChunkedHead, FullHead, HyperNetwork, LowRankHead

HEADS = ["full", "chunked", "low-rank"]
GATED = {
    "embedding.weight": (512, 1024),
    "embedding.bias": (512,),
    "v.weight": (256, 512),
    "v.bias": (256,),
    "u.weight": (256, 512),
    "u.bias": (256,),
    "w.weight": (1, 256),
    "w.bias": (1,),
    "classifier.weight": (2, 512),
    "classifier.bias": (2,),
}
"""Gated attention of HistoFL and CLAM "small" on 1,024 features: 788,739 weights."""


def targets(seed: int = 0) -> Tensors:
    stream = torch.Generator().manual_seed(seed)
    shapes = {"conv": (6, 3, 3, 3), "matrix": (20, 30), "bias": (20,), "number": ()}
    return {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}


def network(head: Any, initial: Tensors | None = None, **keys: Any) -> HyperNetwork:
    initial = initial or targets()
    made = HyperNetwork({n: t.shape for n, t in initial.items()}, embedding=3, head=head, **{"chunk": 64} | keys)
    return made.to(next(iter(initial.values())).dtype).draw(initial, torch.Generator().manual_seed(1))


def shaken(net: HyperNetwork) -> HyperNetwork:
    """Away from the start, where the heads give 0."""
    stream = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=stream, dtype=p.dtype))
    return net


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_weights_are_the_given_ones_to_the_bit(head: Any, dtype: torch.dtype) -> None:
    initial = {name: tensor.to(dtype) for name, tensor in targets().items()}
    net = network(head, initial)
    for seed in range(3):
        made = net(torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=dtype))
        assert list(made) == list(initial)
        assert all(torch.equal(made[name], initial[name]) and made[name].dtype == dtype for name in initial)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_draws_the_same_network(head: Any) -> None:
    one, two = network(head).state_dict(), network(head).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.isnan(tensor).any() for tensor in one.values())


@pytest.mark.parametrize(("head", "most"), [("full", 79.8e6), ("chunked", 10e6), ("low-rank", 10e6)])
def test_size_for_a_target_of_800_thousand(head: Any, most: float) -> None:
    with torch.device("meta"):
        net = HyperNetwork({n: torch.Size(s) for n, s in GATED.items()}, embedding=2, head=head)
    assert sum(math.prod(s) for s in GATED.values()) == 788_739
    size = sum(p.numel() for p in net.parameters())
    assert size <= most
    if head == "full":  # H + 1 for each weight, and a trunk of (2 + 1) H + 3 (H + 1) H
        assert size == 101 * 788_739 + 300 + 3 * 101 * 100


def numpy_trunk(net: HyperNetwork, embedding: np.ndarray) -> np.ndarray:
    z = embedding
    for i, layer in enumerate(net.trunk.layers):
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        z = (np.maximum(z, 0) if i else z) @ weight.T + bias
    return z / np.sqrt(z.shape[-1])


@pytest.mark.parametrize("head", HEADS)
def test_heads_written_out(head: Any) -> None:
    initial = {name: tensor.double() for name, tensor in targets().items()}
    net = shaken(network(head, initial, hidden=7, rank=2, chunk=100))
    v = np.array([0.3, -1.2, 0.7])
    found = {name: t.detach().numpy() for name, t in net(torch.from_numpy(v)).items()}
    base = dict(zip(net.names, (p.detach().numpy() for p in net.base), strict=True))
    part = net.head
    if isinstance(part, ChunkedHead):
        rows = np.concatenate([np.tile(v, (part.count, 1)), part.embeddings.detach().numpy()], axis=1)
        flat = (numpy_trunk(net, rows) @ part.weight.detach().numpy().T / np.sqrt(part.count)).ravel()
        assert part.count == math.ceil((162 + 600 + 20 + 1) / 100)
        assert rows.shape[1] == 3 + CHUNK_EMBEDDING
        start = 0
        for name, tensor in base.items():
            expected = tensor + flat[start : start + tensor.size].reshape(tensor.shape)
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)
            start += tensor.size
        return
    z = numpy_trunk(net, v)
    if isinstance(part, FullHead):
        for (name, tensor), weight in zip(base.items(), part.weights, strict=True):
            np.testing.assert_allclose(found[name], tensor + (weight.detach().numpy() @ z).reshape(tensor.shape))
        return
    assert isinstance(part, LowRankHead)
    assert len(part.left) == 2  # the convolution and the matrix
    for i, name in enumerate(("conv", "matrix")):
        a = (part.left[i].detach().numpy() @ z).reshape(-1, 2)
        b = (part.right[i].detach().numpy() @ z + part.offset[i].detach().numpy()).reshape(2, -1)
        np.testing.assert_allclose(found[name], base[name] + (a @ b).reshape(base[name].shape), rtol=1e-12)
    for i, name in enumerate(("bias", "number")):
        weight = part.full.weights[i].detach().numpy()
        np.testing.assert_allclose(found[name], base[name] + (weight @ z).reshape(base[name].shape), rtol=1e-12)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("seed", range(3))
def test_a_step_moves_the_weights_by_one_to_three_times_the_rate(head: Any, seed: int) -> None:
    """First order: J Jᵀ d along d. 1 is the base's part; z adds its squared length, 1 on average."""
    initial = {name: t.double() for name, t in targets(seed).items()}
    net = network(head, initial)
    stream = torch.Generator().manual_seed(seed)
    d = {name: torch.randn(t.shape, generator=stream, dtype=torch.float64) for name, t in initial.items()}
    v = torch.randn(3, generator=stream, dtype=torch.float64)
    made = net(v)
    gradients = torch.autograd.grad(
        list(made.values()), list(net.parameters()), list(d.values()), materialize_grads=True
    )
    rate = 1e-3
    with torch.no_grad():
        for p, g in zip(net.parameters(), gradients, strict=True):
            p.sub_(rate * g)
        moved = {name: (made[name] - t) / rate for name, t in net(v).items()}
    along = sum(float((moved[n] * d[n]).sum()) for n in d) / sum(float(t.square().sum()) for t in d.values())
    assert 1.0 <= along < 4.0
    if head == "full":
        z = net.trunk(v).square().sum().item()
        assert along == pytest.approx(1 + z, rel=1e-9)
