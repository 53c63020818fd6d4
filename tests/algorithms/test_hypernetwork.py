"""pFedHN: its gradient against autograd's, its step against torch's, newcomers, parts, refusals, restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call

from morphfed.algorithms.base import ALGORITHMS, Outlook
from morphfed.algorithms.hypernetwork import Generating, HypernetworkConfig, generated, travels
from morphfed.core.errors import ConfigError
from morphfed.core.types import Tensors, Upload
from morphfed.federation.loop import Outcome, downloads_of
from morphfed.models.layout import Layout
from morphfed.models.mil import HEADS as HEADS_OF_BAGS
from morphfed.models.mil import part_keys

Make = Callable[..., Any]
HEADS = ["full", "chunked", "low-rank"]
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "clip": 0.0}
SITES = ("a", "b", "c")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)).double()


HEAD, ATTENTION = ("4.weight", "4.bias"), ("2.weight", "2.bias")


def layout() -> Layout:
    return Layout.of(model(), head=HEAD, attention=ATTENTION)


def batch(seed: int, n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=stream, dtype=torch.float64)
    return x, (x[:, :3] + 0.3 * seed).argmax(1)


def loss_of(theta: Tensors, seed: int) -> torch.Tensor:
    x, y = batch(seed)
    return nn.functional.cross_entropy(functional_call(model(), theta, (x,)), y)


def sgd_step(theta: Tensors, seed: int, rate: float) -> Tensors:
    """A site's answer after one step of plain gradient descent."""
    leaves = {name: t.detach().requires_grad_() for name, t in theta.items()}
    found = torch.autograd.grad(loss_of(leaves, seed), list(leaves.values()))
    return {name: (t - rate * g).detach() for (name, t), g in zip(leaves.items(), found, strict=True)}


def coordinator(sites: tuple[str, ...] = SITES, rounds: int = 10, seed: int = 0, **keys: Any) -> Generating:
    initial = {name: p.detach().clone() for name, p in model().named_parameters()}
    half = Generating(initial, layout(), HypernetworkConfig(**{"chunk": 100, "rank": 2} | keys))
    half.plan(Outlook(rounds, sites, seed))
    return half


def shaken(half: Generating) -> Generating:
    """Away from the start, where the embeddings have no effect yet."""
    stream = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in half._phi.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=stream, dtype=p.dtype))
    half._made.clear()
    return half


def one_round(half: Generating, number: int, rate: float = 0.1, sites: tuple[str, ...] = SITES) -> None:
    half.begin_round(number, SITES)
    for site in sites:
        half.fold(Upload(site, number, sgd_step(half.download(site), SITES.index(site), rate), 1.0 + SITES.index(site)))
    half.end_round()


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ── the update ──────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("head", HEADS)
def test_after_one_plain_step_the_gradient_is_the_rate_times_the_losss(head: str) -> None:
    """g = η ∂L(h(v; φ)) / ∂(φ, v), with L differentiated through the hyper-network by autograd."""
    half, rate = shaken(coordinator(head=head)), 0.05
    half.begin_round(1, SITES)
    by_phi, by_embedding = half.gradient("b", sgd_step(half.download("b"), 1, rate))
    embedding = half._embeddings["b"]
    expected = torch.autograd.grad(
        loss_of(half._phi(embedding), 1), [embedding, *half._phi.parameters()], materialize_grads=True
    )
    for found, right in zip([by_embedding, *by_phi.values()], expected, strict=True):
        assert bool(right.any())
        torch.testing.assert_close(found, rate * right, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("weighting", ["uniform", "images"])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_a_round_is_one_step_of_torchs_sgd_on_the_sum_over_the_sites(weighting: str, clip: float) -> None:
    keys = {"lr": 0.3, "embed_lr": 0.7, "momentum": 0.9, "weight_decay": 0.01, "clip": clip, "weighting": weighting}
    half, rate = shaken(coordinator(head="full", **keys)), 0.05
    twin = shaken(coordinator(head="full", **keys))
    phi, embeddings = list(twin._phi.parameters()), [twin._embeddings[s] for s in SITES]
    optimiser = torch.optim.SGD(
        [{"params": phi}, {"params": embeddings, "lr": 0.7}], lr=0.3, momentum=0.9, weight_decay=0.01
    )
    shares = [1.0] * 3 if weighting == "uniform" else [3 * (1 + k) / 6 for k in range(3)]  # K n_k / n
    for number in (1, 2, 3):
        one_round(half, number, rate)
        optimiser.zero_grad()
        sum(rate * shares[k] * loss_of(twin._phi(embeddings[k]), k) for k in range(3)).backward()
        if clip:
            nn.utils.clip_grad_norm_([*phi, *embeddings], clip)
        optimiser.step()
        for found, right in zip(half._phi.parameters(), phi, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-11)
        for site, right in zip(SITES, embeddings, strict=True):
            torch.testing.assert_close(half._embeddings[site], right, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("head", HEADS)
def test_the_first_download_is_the_given_model_to_the_bit(head: str) -> None:
    half, given = coordinator(head=head), {name: p.detach() for name, p in model().named_parameters()}
    for site in SITES:
        assert same(half.download(site), given)
    assert same(half.model(), given)


@pytest.mark.parametrize("head", HEADS)
def test_an_embedding_changes_its_own_sites_weights_only(head: str) -> None:
    half = shaken(coordinator(head=head))
    before = {site: half.download(site) for site in SITES}
    assert not same(before["a"], before["b"])
    with torch.no_grad():
        half._embeddings["b"].add_(0.5)
    half._made.clear()
    assert same(half.download("a"), before["a"])
    assert same(half.download("c"), before["c"])
    assert not any(torch.equal(half.download("b")[name], before["b"][name]) for name in before["b"])


def test_a_site_that_did_not_answer_keeps_its_embedding() -> None:
    half = shaken(coordinator())
    one_round(half, 1)
    before = {site: half._embeddings[site].detach().clone() for site in SITES}
    one_round(half, 2, sites=("a", "c"))
    assert torch.equal(half._embeddings["b"], before["b"])
    assert not torch.equal(half._embeddings["a"], before["a"])


@pytest.mark.parametrize("head", HEADS)
def test_one_site_learns_as_in_plain_training(head: str) -> None:
    """With one site and all weights generated the loss falls as that of gradient descent at the same rate does."""
    rounds, rate = 60, 0.2
    half = coordinator(("a",), rounds, head=head, lr=0.5, **PLAIN)
    central = {name: p.detach().clone() for name, p in model().named_parameters()}
    first = loss_of(central, 0).item()
    losses = []
    for number in range(1, rounds + 1):
        half.begin_round(number, ("a",))
        half.fold(Upload("a", number, sgd_step(half.download("a"), 0, rate), 1.0))
        half.end_round()
        losses.append(loss_of(half.download("a"), 0).item())
        central = sgd_step(central, 0, rate)
    fell, reference = first - losses[-1], first - loss_of(central, 0).item()
    assert losses == sorted(losses, reverse=True)
    assert reference > 0.3
    assert 0.6 * reference < fell < 2 * reference  # half the rate, and a factor of one to three from the trunk


# ── newcomers ───────────────────────────────────────────────────────────────────────────────────────────────────
def frozen_parts(half: Generating) -> Tensors:
    return {name: t.clone() for name, t in half.state().items() if not name.endswith(("/c", "round"))}


def test_a_newcomer_never_moves_the_network_and_fits_its_embedding_at_the_end() -> None:
    keys = {"newcomers": ("c",), "newcomer_rounds": 4, "lr": 0.5, "embed_lr": 2.0, **PLAIN}
    half, without = (shaken(coordinator(rounds=7, **keys)) for _ in range(2))
    for number in (1, 2, 3):
        assert same(half.download("c"), half.model())
        one_round(half, number)
        one_round(without, number, sites=("a", "b"))
    assert same(half.state(), without.state())
    before = frozen_parts(half)
    losses = [loss_of(half.download("c"), 2).item()]
    for number in (4, 5, 6, 7):
        one_round(half, number)
        losses.append(loss_of(half.download("c"), 2).item())
    after = frozen_parts(half)
    assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("optimizer/"))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-4
    assert not same(half.download("c"), half.model())


def test_the_newcomers_first_embedding_is_the_mean_of_the_others() -> None:
    half = shaken(coordinator(rounds=3, newcomers=("c",), newcomer_rounds=1))
    one_round(half, 1)
    one_round(half, 2)
    half.begin_round(3, SITES)
    mean = (half._embeddings["a"] + half._embeddings["b"]) / 2
    torch.testing.assert_close(half._embeddings["c"], mean)
    assert same(half.download("c"), half.model())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"newcomers": ("quito",), "newcomer_rounds": 1}, "newcomers names quito, no training site; there are a, b, c"),
        ({"newcomers": SITES, "newcomer_rounds": 1}, "every training site"),
        ({"newcomers": ("c",)}, "go together"),
        ({"newcomer_rounds": 2}, "go together"),
        ({"newcomers": ("c",), "newcomer_rounds": 10}, "newcomer_rounds = 10 of 10 rounds"),
    ],
)
def test_newcomers_that_cannot_be(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        coordinator(**keys)


# ── which weights ───────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("generate", "made"),
    [
        ("all", ("0", "2", "4")),
        ("attention+classifier", ("2", "4")),
        ("classifier", ("4",)),
        ("body", ("0", "2")),
    ],
)
def test_what_is_generated_and_what_becomes_of_the_rest(generate: Any, made: tuple[str, ...]) -> None:
    keys = [f"{layer}.{kind}" for layer in made for kind in ("weight", "bias")]
    config = HypernetworkConfig(generate=generate)
    assert generated(config, layout()) == tuple(keys)
    assert travels(config, layout()) == layout().order
    assert travels(HypernetworkConfig(generate=generate, rest="stay"), layout()) == tuple(keys)
    half = shaken(coordinator(generate=generate, weighting="images", lr=0.2))
    half.begin_round(1, SITES)
    uploads = {site: sgd_step(half.download(site), k, 0.1) for k, site in enumerate(SITES)}
    for k, site in enumerate(SITES):
        half.fold(Upload(site, 1, uploads[site], 1.0 + k))
    half.end_round()
    one, two = half.download("a"), half.download("b")
    assert list(one) == list(layout().order)
    assert list(half.own("a")) == keys
    for name in one:
        if name in keys:
            assert not torch.equal(one[name], two[name])
        else:
            mean = sum((1 + k) * uploads[site][name] for k, site in enumerate(SITES)) / 6
            torch.testing.assert_close(one[name], mean)
            assert torch.equal(one[name], two[name])


def test_a_network_without_attention_or_known_classifier_is_refused() -> None:
    plain = Layout.of(model(), head=HEAD)
    with pytest.raises(ConfigError, match="no attention over instances"):
        generated(HypernetworkConfig(generate="attention+classifier"), plain)
    with pytest.raises(ConfigError, match="classifier is not known"):
        generated(HypernetworkConfig(generate="body"), Layout.of(model()))
    net = model()
    for name, p in net.named_parameters():
        p.requires_grad_(name in HEAD)
    with pytest.raises(ConfigError, match="nothing of generate = 'body' is trained here"):
        generated(HypernetworkConfig(generate="body"), Layout.of(net, head=HEAD))


def test_attention_and_classifier_of_a_network_for_bags() -> None:
    """263,939 of the 788,739 weights of gated attention; pooling by the mean has no attention."""
    config = HypernetworkConfig(generate="attention+classifier")
    with torch.device("meta"):
        gated, mean = (HEADS_OF_BAGS[name](1024, 2, HEADS_OF_BAGS[name].Config()) for name in ("gated_abmil", "mean"))
    made = generated(config, Layout.of(gated, head=part_keys(gated, "classifier")))
    assert {name.split(".")[0] for name in made} == {"attention", "classifier"}
    assert sum(p.numel() for p in gated.parameters()) == 788_739
    assert sum(p.numel() for name, p in gated.named_parameters() if name in made) == 263_939
    with pytest.raises(ConfigError, match="no attention over instances"):
        generated(config, Layout.of(mean, head=part_keys(mean, "classifier")))


def test_a_hyper_network_that_is_too_large_is_refused_before_it_is_built() -> None:
    with pytest.raises(ConfigError, match=r"head = 'full' for 595 generated weights needs .* at most .* 60,000"):
        coordinator(head="full", max_parameters=60_000)
    coordinator(head="low-rank", max_parameters=60_000)


def test_a_held_out_site_gets_the_mean_embeddings_weights() -> None:
    half = shaken(coordinator())
    one_round(half, 1)
    mean = torch.stack([half._embeddings[site] for site in SITES]).mean(0)
    assert same(half.model(), {name: t.detach() for name, t in half._phi(mean).items()})
    newcomer = ALGORITHMS["hypernetwork"].newcomer
    assert "mean embedding" in newcomer(HypernetworkConfig())
    assert "re-estimated" in newcomer(HypernetworkConfig(rest="stay"))
    assert newcomer(HypernetworkConfig(rest="stay", generate="body")) == ""


def test_a_sites_first_embedding_depends_on_the_seed_and_its_name_only() -> None:
    one, two = coordinator(("a", "b"), embedding=4), coordinator(("c", "b", "d"), embedding=4)
    assert torch.equal(one._embeddings["b"], two._embeddings["b"])
    assert not torch.equal(one._embeddings["a"], one._embeddings["b"])
    assert not torch.equal(one._embeddings["b"], coordinator(("b",), seed=1, embedding=4)._embeddings["b"])
    assert coordinator(tuple("abcdefgh"))._embeddings["a"].shape == (3,)  # int(1 + 8 / 4)


# ── in a federation ─────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    ("keys", "norm"),
    [
        ({"head": "full"}, "batch"),
        ({"head": "chunked", "chunk": 32, "lr": 0.1}, "none"),
        ({"head": "low-rank", "rank": 1, "rest": "stay", "lr": 0.1}, "batch"),
        ({"generate": "classifier", "rest": "stay", "lr": 0.1}, "batch"),
        ({"generate": "body", "momentum": 0.0}, "local"),
        ({"newcomers": ["quito"], "newcomer_rounds": 1, "lr": 0.1}, "batch"),
    ],
)
def test_killed_and_resumed_gives_the_same_bytes(
    keys: dict[str, object], norm: str, steady: Callable[..., Outcome]
) -> None:
    steady("hypernetwork", keys, norm=norm)


def test_the_whole_state_survives_a_checkpoint_to_the_bit(federation: Make, tmp_path: Path) -> None:
    made = federation(tmp_path, algorithm="hypernetwork", rounds=2)
    made.loop.run()
    again = federation(tmp_path, algorithm="hypernetwork", rounds=2)
    again.loop._resume()
    one, two = made.coordinator.state(), again.coordinator.state()
    assert same(one, two)
    assert sum(name.startswith("optimizer/") for name in one) == sum(
        name.startswith(("phi/", "embedding/")) for name in one
    )


@pytest.mark.parametrize("rest", ["average", "stay"])
def test_each_site_is_judged_with_its_own_model(rest: str, federation: Make) -> None:
    made = federation(None, algorithm="hypernetwork", keys={"rest": rest, "lr": 0.2}, rounds=3)
    outcome = made.loop.run()
    downloads = downloads_of(outcome.last, outcome.last_sites)
    weights = [name for name in outcome.last if name in made.layout.parameters]
    statistics = [name for name in made.layout.order if name in made.layout.statistics]
    for name in weights:
        assert not torch.equal(downloads["kampala"][name], downloads["lagos"][name])
    for site in made.sites:
        site.load_model(made.coordinator.download(site.name))
        state = made.workspace.model.state_dict()
        assert all(torch.equal(state[name], downloads[site.name][name]) for name in weights)
    for name in statistics:
        assert (name in outcome.last) == (rest == "average")
        if rest == "stay":
            local = [outcome.last_sites[site][f"local/{name}"] for site in ("kampala", "lagos")]
            assert not torch.equal(*local)


def test_misspelt(refuses: Callable[..., None]) -> None:
    refuses(HypernetworkConfig, "momentun", "momentum")


def test_the_note_tells_how_far_a_round_goes() -> None:
    note = ALGORITHMS["hypernetwork"].note
    assert "takes 0.4 of FedAvg's" in note(HypernetworkConfig(), 4)
    told = note(HypernetworkConfig(newcomers=("c",), newcomer_rounds=2), 4)
    assert "takes 0.3 of FedAvg's" in told
    assert "c fitted an embedding only, in the last 2 rounds" in told
