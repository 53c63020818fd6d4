"""Mean, median and Fourier aggregation of ten models of 21.3 million values, against Flower and a plain torch sum.

Both sides hold the ten models in memory and take turns; Flower answers from a process in its own environment.

    python benchmarks/aggregation.py [--quick] [--no-rivals] [--repeats 7]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from _engine import large_model, small_model, travelling
from _memory import forget_peak, peak, resident
from _rivals import SCRIPTS, environment, variables
from _table import NotMeasuredError, Options, Row, alternate, ratios, run, spread
from morphfed.algorithms.base import Outlook
from morphfed.algorithms.mean import Averaging
from morphfed.algorithms.order import coordinate_median, over_names
from morphfed.algorithms.prr.fourier import Pfa, PfaConfig
from morphfed.algorithms.prr.spectrum import Phase
from morphfed.core.types import Tensors, Upload, nbytes
from morphfed.models.layout import Layout

MODELS = 10


def weights(models: list[Tensors]) -> list[float]:
    return [100.0 + number for number in range(1, len(models) + 1)]


class Coordinator:
    """FedAvg's half as the round loop uses it: folds in one upload at a time, round after round."""

    def __init__(self, initial: Tensors) -> None:
        self._half, self._round = Averaging(initial, weighting="images"), 0

    def __call__(self, models: list[Tensors]) -> Tensors:
        self._round += 1
        sites = [f"site{number}" for number in range(len(models))]
        self._half.begin_round(self._round, sites)
        for site, model, weight in zip(sites, models, weights(models), strict=True):
            self._half.fold(Upload(site, self._round, model, weight))
        self._half.end_round()
        return self._half.model()


def median(models: list[Tensors]) -> Tensors:
    return over_names(coordinate_median, models)


def plain_sum(models: list[Tensors]) -> Tensors:
    """The shortest that torch offers."""
    shares = [weight / sum(weights(models)) for weight in weights(models)]
    found = {name: tensor * shares[0] for name, tensor in models[0].items()}
    for model, share in zip(models[1:], shares[1:], strict=True):
        for name, tensor in model.items():
            found[name].add_(tensor, alpha=share)
    return found


class Fourier:
    """PFA's half as the round loop uses it: folds in one at a time, then gives every site its own band; round 5 of 10.

    Uploads take the memory of those of the round before.
    """

    def __init__(self, initial: Tensors, layout: Layout, phase: Phase) -> None:
        self._half = Pfa(initial, layout, PfaConfig(phase=phase))
        self._half.plan(Outlook(10))

    def __call__(self, models: list[Tensors]) -> Tensors:
        sites = [f"site{number}" for number in range(len(models))]
        self._half.begin_round(5, sites)
        for site, model in zip(sites, models, strict=True):
            self._half.fold(Upload(site, 5, model, 1.0))
        self._half.end_round()
        return self._half.model()


def compare_fourier(network: nn.Module, options: Options) -> Iterator[Row]:
    """Real convolution shapes, since a transform's cost depends on its sides; norms stay at their sites."""
    layout = Layout.of(network)
    models = alike({n: t for n, t in travelling(network).items() if n not in layout.norms})
    mean = timed(Coordinator(models[0]), models)
    phases: tuple[Phase, ...] = ("complex", "private", "arithmetic")
    for phase in phases:
        rule = Fourier(models[0], layout, phase)
        memory = extra_models(rule, models)
        seconds, plain = alternate([timed(rule, models), mean], options.repeats)
        where = "processor time" if one_thread() else f"wall time, torch on {torch.get_num_threads()} threads"
        yield Row(
            f"PFA ({phase}) of ten models of {nbytes(models[0]) / 4e6:.1f} M values, {where}",
            f"{spread(seconds, 's')}, {memory:.2f} models of memory",
            f"FedAvg of the same {spread(plain, 's')}",
            f"{spread(ratios(seconds, plain))} × FedAvg",
            "≤ 3 s on two cores",
            None if options.quick or torch.get_num_threads() != 2 else statistics.median(seconds) <= 3.0,
            "Ten models of their own and two means are held: each site's high frequencies are nobody else's. Memory is "
            "what the first round adds; times are of later rounds.",
        )


def alike(initial: Tensors) -> list[Tensors]:
    generator = torch.Generator().manual_seed(0)
    return [{n: torch.randn(t.shape, generator=generator) for n, t in initial.items()} for _ in range(MODELS)]


def timed(rule: Callable[[list[Tensors]], Tensors], models: list[Tensors]) -> Callable[[], float]:
    clock = time.process_time if one_thread() else time.perf_counter

    def once() -> float:
        start = clock()
        rule(models)
        return clock() - start

    return once


def extra_models(rule: Callable[[list[Tensors]], Tensors], models: list[Tensors]) -> float:
    """Highest memory of one aggregation, its result included, in models."""
    forget_peak()
    before = resident()
    rule(models)
    return (peak() - before) / nbytes(models[0])


@contextmanager
def flower(shapes: list[list[int]]) -> Iterator[Callable[[str], Callable[[], float]]]:
    """Flower with its own ten models, ready to aggregate them on demand.

    Raises:
        NotMeasuredError: it cannot be installed or does not answer.
    """
    python = environment("flwr")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shapes.json"
        file.write_text(json.dumps(shapes))
        command = [str(python), str(SCRIPTS / "flwr_aggregate.py"), str(file), str(MODELS)]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=variables(),
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            questions, answers = process.stdin, process.stdout
            if answers.readline().strip() != "ready":
                raise NotMeasuredError("Flower's aggregation did not start")

            def ask(strategy: str) -> Callable[[], float]:
                def once() -> float:
                    questions.write(f"{strategy}\n")
                    questions.flush()
                    answer = answers.readline()
                    if not answer:
                        raise NotMeasuredError(f"Flower's {strategy} ended with an error")
                    return float(answer.split()[1 if one_thread() else 0])

                return once

            try:
                yield ask
            finally:
                questions.close()


def one_thread() -> bool:
    """Then processor time is measured, which other programs of the machine disturb least; else wall time."""
    return torch.get_num_threads() == 1


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(name: str, rule: Callable[[list[Tensors]], Tensors], models: list[Tensors], options: Options) -> Row:
    """One rule against Flower's strategy, which is NumPy on one thread."""
    what = {"fedavg": "FedAvg", "fedmedian": "FedMedian"}[name]
    wanted = {"fedavg": 8.0, "fedmedian": 12.0}[name]
    memory = extra_models(rule, models)
    rival, ratio, met = "not asked for", "–", None
    own = timed(rule, models)
    turns: list[list[float]] = []
    if options.rivals:
        try:
            with flower([list(t.shape) for t in models[0].values()]) as ask:
                turns = alternate([own, ask(name)], options.repeats)
        except NotMeasuredError as why:
            rival = f"not measured: {why}"
    if turns:
        quotients = ratios(turns[1], turns[0])
        rival = f"flwr {spread(turns[1], 's')}"
        ratio = f"{spread(quotients)} ×; fastest {min(turns[1]) / min(turns[0]):.3g} ×"
        met = statistics.median(quotients) >= wanted and (name == "fedmedian" or memory <= 2)
    else:
        turns = alternate([own], options.repeats)
    return Row(
        f"{what} of ten models of {nbytes(models[0]) / 4e6:.1f} M values, "
        + ("processor time" if one_thread() else f"wall time, torch on {torch.get_num_threads()} threads"),
        f"{spread(turns[0], 's')}, {memory:.2f} models of memory",
        rival,
        ratio,
        f"≥ {wanted:g} ×" + (", ≤ 2 models" if name == "fedavg" else ""),
        met,
        "Memory is what the first aggregation adds at its highest to the ten models and the global model, its result "
        "included. FedAvg's sums take the memory of the model before the last, as in every round but the first.",
    )


def rows(options: Options) -> Iterator[Row]:
    network = small_model() if options.quick else large_model()
    initial = travelling(network)
    models = alike(initial)
    for threads in sorted({1, torch.get_num_threads()}):
        with torch_threads(threads):
            yield compare("fedavg", Coordinator(initial), models, options)
            yield compare("fedmedian", median, models, options)
    with torch_threads(1):
        one, other = alternate([timed(Coordinator(initial), models), timed(plain_sum, models)], options.repeats)
    yield Row(
        "FedAvg of ten against a plain torch sum, processor time",
        spread(one, "s"),
        f"torch {spread(other, 's')}",
        f"{spread(ratios(other, one))} ×",
        note="The sum knows all weights beforehand; ours does not, and its mean of one model is that very model.",
    )
    del models
    for threads in sorted({1, torch.get_num_threads()}):
        with torch_threads(threads):
            yield from compare_fourier(network, options)


if __name__ == "__main__":
    run(rows, __doc__)
