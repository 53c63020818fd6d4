"""Every head equals its formula written out, and has the properties that it is said to have."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.mil import written_out as ref

from morphfed.core.errors import ConfigError
from morphfed.models.layout import Layout
from morphfed.models.mil import HEADS, PARTS, MilHead, MilOutput, base, build_head, part_keys
from morphfed.models.mil.clam import smooth_svm
from morphfed.models.mil.transmil import pseudo_inverse

D, SMALL = 12, {"hidden": (16,)}
NAMES = ("abmil", "clam_sb", "dsmil", "gated_abmil", "max", "mean", "transmil")


def head_of(name: str, classes: int = 3, seed: int = 0, **options: Any) -> MilHead:
    """A head in double precision, without dropout, whose biases are not all zero."""
    torch.manual_seed(seed)
    head = build_head(name, D, classes, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for key, tensor in head.state_dict().items():
            if key.endswith("bias"):
                tensor.normal_(0, 0.3)
    return head


def bag_of(n: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, D)))


def near(got: torch.Tensor | None, expected: np.ndarray, tolerance: float = 1e-10) -> None:
    assert got is not None
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


def test_the_heads_there_are() -> None:
    assert HEADS.names() == sorted(NAMES)


# Long bags


@pytest.mark.parametrize("train", [False, True], ids=["predicting", "training"])
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in NAMES if name != "transmil"]
    + [("mean", {"level": "instance"}), ("max", {"level": "instance"}), ("clam_sb", {"subtyping": True})],
)
def test_a_long_bag_in_blocks_is_the_same_bag(
    name: str, options: dict[str, Any], train: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, bag, label = head_of(name, **options), bag_of(13), torch.tensor(1)
    with torch.no_grad():  # scores of very different size, so that each block has its own highest
        bag[3:6] *= 9

    def of(block: int) -> tuple[MilOutput, list[torch.Tensor]]:
        monkeypatch.setattr(base, "LONG", block)
        monkeypatch.setattr(base, "BLOCK", block)
        head.zero_grad()
        with torch.set_grad_enabled(train):
            output = head(bag)
            if train:
                loss = head.loss(bag, output, label, lambda z: F.cross_entropy(z[None], label[None]))
                loss.backward()  # type: ignore[no-untyped-call]
        return output, [p.grad.clone() for p in head.parameters() if train and p.grad is not None]

    (whole, gradients), (blocks, others) = of(13), of(4)
    near(blocks.logits, whole.logits.detach().numpy())
    assert (whole.attention is None) == (blocks.attention is None)
    if whole.attention is not None:
        near(blocks.attention, whole.attention.detach().numpy())
    assert whole.instances is not None
    near(blocks.instances, whole.instances.detach().numpy())
    assert len(gradients) == len(others)
    for one, other in zip(gradients, others, strict=True):
        near(other, one.numpy())


# Against the formulas written out


@pytest.mark.parametrize("n", [1, 7])
def test_pooling_written_out(n: int) -> None:
    bag = bag_of(n)
    for level in ("embedding", "instance"):
        for name in ("mean", "max"):
            head = head_of(name, level=level)
            w = ref.weights_of(head)
            hs = ref.embed(w, bag.numpy())
            scores = hs @ w["classifier.weight"].T + w["classifier.bias"]
            pooled = hs.mean(0) if name == "mean" else hs.max(0)
            logits = w["classifier.weight"] @ pooled + w["classifier.bias"]
            if level == "instance":
                logits = scores.mean(0) if name == "mean" else scores.max(0)
            near(head(bag).logits, logits)
            near(head(bag).instances, scores)


@pytest.mark.parametrize("name", ["abmil", "gated_abmil"])
@pytest.mark.parametrize("hidden", [(16,), (16, 10), ()])
def test_attention_written_out(name: str, hidden: tuple[int, ...]) -> None:
    head, bag = head_of(name, hidden=hidden, attention=5), bag_of(6)
    logits, attention = ref.attention_pooling(ref.weights_of(head), bag.numpy())
    output = head(bag)
    near(output.logits, logits)
    near(output.attention, attention)
    assert output.instances is not None
    near(output.logits, (attention[:, None] * output.instances.detach().numpy()).sum(0))


@pytest.mark.parametrize(("kind", "loss"), [("smooth_svm", ref.svm), ("cross_entropy", ref.cross_entropy)])
@pytest.mark.parametrize("subtyping", [False, True])
@pytest.mark.parametrize(("n", "taken"), [(30, 8), (9, 4), (2, 1)])
def test_clam_written_out(kind: str, loss: Any, subtyping: bool, n: int, taken: int) -> None:
    head = head_of("clam_sb", instance_loss=kind, subtyping=subtyping, attention=5)
    bag, w = bag_of(n), ref.weights_of(head)
    output = head(bag)
    logits, attention = ref.attention_pooling(w, bag.numpy(), "classifier.bag")
    near(output.logits, logits)
    near(output.attention, attention)
    expected = ref.clam_instances(w, bag.numpy(), 1, taken=taken, subtyping=subtyping, loss=loss)
    terms = head.loss_terms(bag, output, 1)
    near(terms, np.array(0.3 * expected))
    total = head.loss(bag, output, 1, lambda logits: F.cross_entropy(logits[None], torch.tensor([1])))
    near(total, np.array(0.7 * ref.cross_entropy(logits, 1) + 0.3 * expected))


def test_clam_of_one_instance_has_no_instance_loss() -> None:
    head, bag = head_of("clam_sb"), bag_of(1)
    assert head.loss_terms(bag, head(bag), 0) is None


def test_ungated_clam_is_abmil_with_more_to_learn_from() -> None:
    clam, plain = head_of("clam_sb", gated=False), head_of("abmil")
    state = {k.replace("classifier.bag.", "classifier."): v for k, v in clam.state_dict().items()}
    plain.load_state_dict({k: v for k, v in state.items() if ".instances." not in k})
    torch.testing.assert_close(clam(bag_of(5)).logits, plain(bag_of(5)).logits)


def test_smooth_svm_worked_by_hand() -> None:
    # Scores (2, −1) of class 0: log(e^0 + e^(1 − 1 − 2)) = log(1 + e^−2); of class 1: log(e^(1 + 2 + 1) + e^0).
    scores = torch.tensor([[2.0, -1.0], [2.0, -1.0]])
    assert smooth_svm(scores[:1], torch.tensor([0])).item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert smooth_svm(scores[1:], torch.tensor([1])).item() == pytest.approx(math.log(1 + math.exp(4)))
    both = smooth_svm(scores, torch.tensor([0, 1])).item()
    assert both == pytest.approx((math.log(1 + math.exp(-2)) + math.log(1 + math.exp(4))) / 2)
    # Without smoothing it is the multi-class hinge loss.
    sharp = smooth_svm(scores[1:], torch.tensor([1]), temperature=1e-3).item()
    assert sharp == pytest.approx(4.0, abs=1e-2)


@pytest.mark.parametrize("hidden", [(), (16,)])
def test_dsmil_written_out(hidden: tuple[int, ...]) -> None:
    head, bag = head_of("dsmil", hidden=hidden, query=6), bag_of(9)
    highest, pooled, weights = ref.dsmil(ref.weights_of(head), bag.numpy())
    output = head(bag)
    near(output.logits, (highest + pooled) / 2)
    near(output.streams, np.stack([highest, pooled]))
    near(output.attention, weights[:, int(np.argmax(highest + pooled))])
    total = head.loss(bag, output, 2, lambda logits: F.cross_entropy(logits[None], torch.tensor([2])))
    near(total, np.array((ref.cross_entropy(highest, 2) + ref.cross_entropy(pooled, 2)) / 2))


@pytest.mark.parametrize("n", [1, 2, 5, 9, 10])
def test_transmil_with_exact_attention_written_out(n: int) -> None:
    head, bag = head_of("transmil", heads=4), bag_of(n)
    logits, attention = ref.transmil(ref.weights_of(head), bag.numpy(), heads=4, landmarks=None)
    near(head(bag).logits, logits)
    near(head(bag).attention, attention)


@pytest.mark.parametrize("n", [14, 40])
def test_transmil_with_landmarks_written_out(n: int) -> None:
    """NumPy's pseudo-inverse in place of the iteration, which is let run until it has converged."""
    head, bag = head_of("transmil", heads=4, landmarks=5, pinv_steps=30), bag_of(n)
    logits, attention = ref.transmil(ref.weights_of(head), bag.numpy(), heads=4, landmarks=5)
    near(head(bag).logits, logits, 1e-6)
    near(head(bag).attention, attention, 1e-6)


def test_as_many_landmarks_as_tokens_is_exact_attention() -> None:
    """A A⁺ A = A: the approximation has nothing to approximate."""
    from morphfed.models.mil.transmil import SelfAttention, TransMilConfig

    torch.manual_seed(0)
    layer = SelfAttention(16, TransMilConfig(heads=4, landmarks=10, pinv_steps=40)).double().eval()
    tokens = torch.randn(10, 16, dtype=torch.float64)
    exact, row = layer(tokens)
    q, k, v = layer.qkv(tokens).reshape(10, 3, 4, 4).permute(1, 2, 0, 3)
    mixed, approximate = layer._nystrom(q / 2, k, v)
    torch.testing.assert_close(approximate.mean(0), row, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(mixed, F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(exact, mixed.permute(1, 0, 2).reshape(10, 16))  # the convolution and the output layer


def test_pseudo_inverse_is_numpys() -> None:
    matrices = torch.softmax(torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), -1)
    near(pseudo_inverse(matrices, 40), np.linalg.pinv(matrices.numpy()), 1e-6)


def test_exact_attention_can_be_asked_for() -> None:
    bag = bag_of(40)
    near_exact = head_of("transmil", heads=4, landmarks=5, attention="exact")(bag).logits
    few = head_of("transmil", heads=4, landmarks=5)(bag).logits
    many = head_of("transmil", heads=4)(bag).logits  # 50 tokens, 256 landmarks: exact
    torch.testing.assert_close(near_exact, many)
    assert (few - many).abs().max() > 1e-6


# Properties


@pytest.mark.parametrize("name", NAMES)
def test_order_counts_only_where_it_is_said_to(name: str) -> None:
    head, bag = head_of(name), bag_of(23)
    turned = torch.from_numpy(np.random.default_rng(3).permutation(23))
    one, other = head(bag), head(bag[turned])
    same = torch.allclose(one.logits, other.logits, rtol=1e-9, atol=1e-9)
    assert same is not head.order_matters
    for field in ("attention", "instances"):
        a, b = getattr(one, field), getattr(other, field)
        if a is not None and not head.order_matters:
            torch.testing.assert_close(a[turned], b)
    assert head.order_matters is (name == "transmil")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [1, 2, 17, 300])
def test_shapes_and_weights(name: str, n: int) -> None:
    head, bag = head_of(name, classes=2), bag_of(n)
    output = head(bag)
    assert isinstance(output, MilOutput)
    assert output.logits.shape == (2,)
    if output.attention is not None:
        assert output.attention.shape == (n,)
        assert output.attention.min() >= 0
        assert output.attention.sum().item() == pytest.approx(1)
    if output.instances is not None:
        assert output.instances.shape == (n, 2)
    assert (output.attention is None) is (name == "max")
    assert (output.instances is None) is (name == "transmil")


@pytest.mark.parametrize("name", [n for n in NAMES if n != "transmil"])
def test_a_bag_of_one_is_that_instance(name: str) -> None:
    """With one instance every attention is 1; a copy of it changes nothing."""
    head, bag = head_of(name), bag_of(1)
    torch.testing.assert_close(head(bag).logits, head(bag.repeat(4, 1)).logits)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_weight_and_are_right(name: str) -> None:
    head = head_of(name, classes=2, hidden=(8,), heads=2) if name == "transmil" else head_of(name, 2, hidden=(8,))
    bag, target = bag_of(10), torch.tensor([1])
    criterion = partial(lambda logits: F.cross_entropy(logits[None], target))

    def loss() -> torch.Tensor:
        return head.loss(bag, head(bag), 1, criterion)

    loss().backward()
    rng, silent = np.random.default_rng(0), []
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None or ".instances.0." in key, key  # CLAM: the other class's cluster
        if parameter.grad is None or not parameter.grad.any():
            silent.append(key)
            continue
        at = tuple(int(rng.integers(s)) for s in parameter.shape)
        with torch.no_grad():
            step, before = 1e-6, parameter[at].item()
            values = []
            for change in (step, -step):
                parameter[at] = before + change
                values.append(loss().item())
            parameter[at] = before
        slope = (values[0] - values[1]) / (2 * step)
        assert slope == pytest.approx(parameter.grad[at].item(), rel=1e-4, abs=1e-7), key
    # A softmax over instances does not see a bias; class 0's cluster is not asked when the bag is of class 1.
    allowed = {"attention.w.bias", "classifier.instances.0.weight", "classifier.instances.0.bias"}
    assert all(key in allowed or abs(head.get_parameter(key).grad).max() < 1e-15 for key in silent), silent


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_in_one_part(name: str) -> None:
    head = head_of(name)
    found = [key for part in PARTS for key in part_keys(head, part)]
    assert sorted(found) == sorted(head.state_dict())
    assert part_keys(head, "classifier")
    assert set(Layout.of(head).order) == set(head.state_dict()) == set(Layout.of(head).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_same_seed_same_weights(name: str) -> None:
    one, other, third = head_of(name), head_of(name), head_of(name, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert not torch.equal(one(bag_of(4)).logits, third(bag_of(4)).logits)


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_for_training_only(name: str) -> None:
    head, bag = head_of(name, dropout=0.5), bag_of(20)
    assert torch.equal(head(bag).logits, head(bag).logits)
    head.train()
    torch.manual_seed(0)
    assert not torch.equal(head(bag).logits, head(bag).logits)


@pytest.mark.parametrize("name", NAMES)
def test_weights_can_come_from_elsewhere(name: str) -> None:
    """A hyper-network hands a head weights that it has made, and wants their gradients back."""
    head, bag = head_of(name, classes=2), bag_of(12)
    generated = {key: (1.1 * value).requires_grad_() for key, value in head.state_dict().items()}
    output = torch.func.functional_call(head, generated, (bag,))
    assert not torch.equal(output.logits, head(bag).logits)
    wanted = [generated[key] for part in PARTS for key in part_keys(head, part) if ".instances." not in key]
    grads = torch.autograd.grad(output.logits.square().sum(), wanted)
    assert all(grad.isfinite().all() for grad in grads)
    head.load_state_dict(generated)
    torch.testing.assert_close(head(bag).logits, output.logits)


# Sizes


def numbers(head: MilHead) -> int:
    return sum(p.numel() for p in head.parameters())


def test_parameter_counts() -> None:
    """788,739 and 789,252 are CLAM's and HistoFL's "small" network on 1024 features with two and three classes."""
    gated = build_head("gated_abmil", 1024, 2)
    assert numbers(gated) == 788_739
    assert numbers(build_head("gated_abmil", 1024, 3)) == 789_252
    sizes = {part: sum(gated.state_dict()[k].numel() for k in part_keys(gated, part)) for part in PARTS}
    assert sizes == {"embedding": 524_800, "attention": 262_913, "classifier": 1_026}
    assert sizes["attention"] + sizes["classifier"] == 263_939
    assert numbers(build_head("clam_sb", 1024, 2)) == 788_739 + 2 * 1_026  # and an instance classifier a class
    assert numbers(build_head("abmil", 1024, 2)) == 788_739 - (512 * 256 + 256)
    assert numbers(build_head("mean", 1024, 2)) == 524_800 + 1_026
    # Instance classifier, queries, and C × C × D for the pooled vectors.
    assert numbers(build_head("dsmil", 1024, 2)) == 2_050 + 131_200 + 16_512 + 4_098
    layer = 512 * 1536 + 8 * 33 + 512 * 512 + 512 + 2 * 512
    rest = 512 + 512 * (49 + 25 + 9 + 3) + 2 * 512
    assert numbers(build_head("transmil", 1024, 2)) == 524_800 + 2 * layer + rest + 1_026 == 2_672_146


@pytest.mark.slow
def test_ten_thousand_instances_fit_in_little_memory() -> None:
    """Forward and backward of a bag of 10,000 × 1,024 (41 MB): gigabytes would mean a square of the bag's size."""
    pytest.importorskip("resource")
    program = (
        "import resource, sys, torch\n"
        "import torch.nn.functional as F\n"
        "from morphfed.models.mil import build_head\n"
        "torch.set_num_threads(1)\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "bag = torch.randn(10_000, 1024)\n"
        "for name in sys.argv[1:]:\n"
        "    head = build_head(name, 1024, 2); before = peak()\n"
        "    loss = head.loss(bag, head(bag), 1, lambda x: F.cross_entropy(x[None], torch.tensor([1])))\n"
        "    loss.backward()\n"
        "    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())\n"
        "    print(name, round(peak() - before))\n"
    )
    # From small to large, because only a new peak is seen.
    order = ("dsmil", "mean", "gated_abmil", "clam_sb", "transmil")
    done = subprocess.run([sys.executable, "-c", program, *order], capture_output=True, text=True, check=True)
    more = {name: int(mib) for name, mib in (line.split() for line in done.stdout.splitlines())}
    assert set(more) == set(order)
    assert max(more["dsmil"], more["mean"], more["gated_abmil"], more["clam_sb"]) < 400, more
    assert more["transmil"] < 1600, more


# Wrong use


@pytest.mark.parametrize("shape", [(0, D), (4, D + 1), (D,), (1, 4, D)])
def test_a_bag_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(N, {D})")):
        head_of("abmil")(torch.zeros(shape, dtype=torch.float64))


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'transmil'"):
        build_head("transmill", 4, 2)
    with pytest.raises(ConfigError, match="unknown key 'atention'.*Did you mean 'attention'"):
        build_head("abmil", 4, 2, atention=4)
    with pytest.raises(ConfigError, match="no multiple of heads"):
        build_head("transmil", 4, 2, hidden=(12,))
    with pytest.raises(ConfigError, match="'dropout' = 1"):
        build_head("mean", 4, 2, dropout=1)
