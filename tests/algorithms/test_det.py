"""DET: stages, lessons, a plain two-network loop as oracle, and who is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from morphfed.algorithms.prr.deputy import DetConfig, distance, lessons, next_stage
from morphfed.core.config import validate
from morphfed.core.errors import ConfigError, FederationError
from morphfed.core.seeding import derive

Make = Callable[..., Any]
STEADY = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "warmup": 0.0, "clip": 0.0}


@pytest.mark.parametrize(
    ("scores", "stages"),
    [
        # (f_p, f_d) before each pass; recover first, whatever they are.
        ([(0.8, 0.8)] * 5, [1, 2, 3, 3, 3]),
        ([(0.8, 0.5)] * 5, [1, 1, 1, 1, 1]),  # 0.5 < 0.56
        ([(0.8, 0.56), (0.8, 0.6), (0.8, 0.7), (0.8, 0.73), (0.8, 0.9)], [1, 2, 2, 3, 3]),
        ([(0.8, 0.9), (0.8, 0.9), (0.8, 0.9), (0.8, 0.6), (0.8, 0.1)], [1, 2, 3, 2, 1]),  # and back again
        (
            [(0.8, 0.1), (0.8, 0.9), (0.8, 0.1), (0.8, 0.9), (0.8, 0.9)],
            [1, 2, 1, 2, 3],
        ),  # not from recover to sublimate
        ([(0.0, 0.0)] * 3, [1, 2, 3]),
    ],
)
def test_stages_by_hand(scores: list[tuple[float, float]], stages: list[int]) -> None:
    found, stage = [], 0
    for personal, deputy in scores:
        stage = next_stage(stage, personal, deputy, alpha1=0.7, alpha2=0.9)
        found.append(stage)
    assert found == stages


def test_divergence_against_numpy_and_without_gradient_for_the_teacher() -> None:
    rng = np.random.default_rng(0)
    t, s = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (t, s))
    teacher, student = torch.tensor(t, requires_grad=True), torch.tensor(s, requires_grad=True)
    found = distance(teacher, student)
    assert found.item() == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    found.backward()
    assert teacher.grad is None
    np.testing.assert_allclose(student.grad.numpy(), (q - p) / 5, atol=1e-6)  # type: ignore[union-attr]


def test_divergence_of_masks_is_the_mean_over_all_pixels() -> None:
    teacher, student = (torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    pixels = (z.movedim(1, -1).reshape(-1, 3) for z in (teacher, student))
    assert distance(teacher, student).item() == pytest.approx(distance(*pixels).item(), rel=1e-5)


@pytest.mark.parametrize(("stage", "learns"), [(1, "d"), (2, "dp"), (3, "p")])
def test_who_learns_in_which_stage(stage: int, learns: str) -> None:
    d, p = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).requires_grad_() for i in (0, 1))
    sum(lessons(stage, d, p)).backward()  # type: ignore[union-attr]
    assert (d.grad is not None) == ("d" in learns)
    assert (p.grad is not None) == ("p" in learns)


@pytest.fixture
def scripted() -> Callable[..., Any]:
    """Let every site judge by a script: (f_p, f_d) for each pass after a round's first."""

    def script(made: Any, scores: list[tuple[float, float]]) -> list[str]:
        asked: list[str] = []
        for site in made.sites:
            feed: Iterator[float] = iter([f for pair in scores for f in pair] * 10)

            def judge(model: Any, part: str, feed: Iterator[float] = feed) -> dict[str, float]:
                asked.append(part)
                model.eval()  # as judging does
                return {"macro_f1": next(feed)}

            site._judge = judge
        return asked

    return script


@pytest.mark.parametrize(
    ("length", "steps", "stages"),
    [
        ({"local_epochs": 1}, 3, [2]),  # one pass alone is exchange; ten images in batches of four are three steps
        ({"local_epochs": 4}, 12, [1, 2, 3, 2]),
        ({"local_steps": 2}, 2, [2]),
        ({"local_steps": 11}, 11, [1, 2, 3, 2]),
    ],
)
def test_against_a_plain_loop(
    federation: Make, scripted: Callable[..., Any], length: dict[str, int], steps: int, stages: list[int]
) -> None:
    made = federation(None, algorithm="det", sizes={"quito": 10}, rounds=1, train={**STEADY, **length, "lr": 0.05})
    asked = scripted(made, [(0.8, 0.8), (0.8, 0.8), (0.8, 0.6)])
    site, trainer = made.sites[0], made.sites[0]._trainer
    d, p = copy.deepcopy(made.model), copy.deepcopy(made.model)
    outcome = made.loop.run()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(0, "dropout", "quito", 1))
        batches = islice(trainer._batches(site._train, "quito", 1, len(stages)), steps)
        for number, (piece,) in enumerate(batches):
            images, labels = piece.inputs, piece.targets
            stage = stages[number // 3]
            d.train(), p.train()
            zd, zp = d(images), p(images)
            loss_d, loss_p = F.cross_entropy(zd, labels), F.cross_entropy(zp, labels)
            if stage in (1, 2):
                loss_d = loss_d + F.kl_div(zd.log_softmax(1), zp.detach().softmax(1), reduction="batchmean")
            if stage in (2, 3):
                loss_p = loss_p + F.kl_div(zp.log_softmax(1), zd.detach().softmax(1), reduction="batchmean")
            for net, loss in ((d, loss_d), (p, loss_p)):
                grads = torch.autograd.grad(loss, list(net.parameters()))
                with torch.no_grad():
                    for w, g in zip(net.parameters(), grads, strict=True):
                        w -= 0.05 * g
    for name in made.layout.order:
        torch.testing.assert_close(outcome.last[name], d.state_dict()[name], rtol=1e-4, atol=1e-6)
        mine = outcome.last_sites["quito"][f"algorithm/personal/{name}"]
        torch.testing.assert_close(mine, p.state_dict()[name], rtol=1e-4, atol=1e-6)
    assert asked == ["validation"] * 2 * (len(stages) - 1)
    assert outcome.progress.steps == 2 * steps


def test_the_criterion_can_be_the_training_part(federation: Make, scripted: Callable[..., Any]) -> None:
    made = federation(None, algorithm="det", keys={"criterion": "training"}, rounds=1, train={"local_epochs": 2})
    asked = scripted(made, [(0.5, 0.5)])
    made.loop.run()
    assert set(asked) == {"training"}


def test_judging_takes_the_right_part_and_none_where_it_is_empty(federation: Make) -> None:
    site = federation(None, sizes={"kampala": 12}).sites[0]
    work = site._work(1, 1)
    found = [work.judge(work.model, part) for part in ("training", "validation")]
    for metrics, data in zip(found, (site._train, site._validation["kampala"]), strict=True):
        right = (site._trainer.predict(work.model, data).argmax(1) == data.labels).mean()
        assert metrics == {"balanced_accuracy": right, "macro_f1": right}
    site._validation = {}
    assert work.judge(work.model, "validation") is None


def test_a_site_without_validation_images_is_named(federation: Make) -> None:
    made = federation(None, algorithm="det", sizes={"kampala": 12}, rounds=1, train={"local_epochs": 2})
    made.sites[0]._validation = {}
    with pytest.raises(FederationError, match="'kampala'.*no validation images"):
        made.loop.run()


def test_a_site_is_judged_by_its_personal_model(federation: Make) -> None:
    made = federation(None, algorithm="det", rounds=2, train={"local_epochs": 2})
    outcome = made.loop.run()
    weights = []
    for site in made.sites:
        site.load_model(outcome.last)
        state = made.model.state_dict()
        kept = outcome.last_sites[site.name]
        assert all(torch.equal(state[k], kept[f"algorithm/personal/{k}"]) for k in made.layout.order)
        weights.append(state["0.weight"].clone())
    assert not torch.equal(weights[0], weights[1])


def test_steady_free_of_order_and_strict(
    steady: Callable[..., Any], order_free: Callable[..., None], refuses: Callable[..., None]
) -> None:
    steady("det", train={"local_epochs": 3})
    order_free("det")
    refuses(DetConfig, "aplha1", "alpha1")
    with pytest.raises(ConfigError, match="alpha1 = 0.95 must not be above alpha2 = 0.9"):
        validate(DetConfig, {"alpha1": 0.95}, where="study.toml: arms.det")
