"""What the hyper-network costs beside training: generating every site's weights, the gradients, and the step.

The target is the gated attention of HistoFL and CLAM "small" on 1,024 features, 788,739 weights, all generated for four
sites. A round of training is 20 bags a site, each of 1,000 instances (a small slide), forward, backward and Adam; one
bag is measured and counted 80 times. The hyper-network's part is all that the coordinator does in a round: four
downloads, four vector–Jacobian products, one step.

    python benchmarks/hypernetwork.py [--quick] [--repeats 7]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

from _memory import forget_peak, peak, resident
from _table import Options, Row, alternate, ratios, run, spread
from morphfed.algorithms.base import Outlook
from morphfed.algorithms.hypernetwork import Generating, HypernetworkConfig
from morphfed.core.types import Upload, nbytes
from morphfed.models.layout import Layout

SITES = tuple(f"site{k}" for k in range(4))
BAGS = 20
SHARE = 0.1
MIB = 2**20


class GatedAttention(nn.Module):
    """One bag ``(N, D)`` → logits ``(2,)``."""

    def __init__(self, features: int, hidden: int, attention: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, hidden)
        self.v, self.u = nn.Linear(hidden, attention), nn.Linear(hidden, attention)
        self.w, self.classifier = nn.Linear(attention, 1), nn.Linear(hidden, 2)

    def forward(self, bag: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.embedding(bag))
        weights = torch.softmax(self.w(torch.tanh(self.v(h)) * torch.sigmoid(self.u(h))), dim=0)
        logits: torch.Tensor = self.classifier((weights * h).sum(0))
        return logits


def network(quick: bool) -> GatedAttention:
    torch.manual_seed(0)
    return GatedAttention(64, 32, 16) if quick else GatedAttention(1024, 512, 256)


def bag_step(net: GatedAttention, instances: int) -> Callable[[], float]:
    """Processor seconds of one training step on one bag."""
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4)
    bag = torch.randn(instances, net.embedding.in_features)

    def once() -> float:
        start = time.process_time()
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(bag)[None], torch.tensor([1])).backward()
        optimiser.step()
        return time.process_time() - start

    return once


class Coordinator:
    """The hyper-network's part of a round, with uploads that differ a little from the downloads."""

    def __init__(self, net: nn.Module, **keys: object) -> None:
        self.initial = {name: p.detach().clone() for name, p in net.named_parameters()}
        self.half = Generating(self.initial, Layout.of(net), HypernetworkConfig.model_validate(keys))
        self.half.plan(Outlook(1000, SITES))
        self.size = sum(p.numel() for p in self.half._phi.parameters())
        self._round = 0

    def __call__(self) -> float:
        """Processor seconds of a round."""
        self._round += 1
        start = time.process_time()
        self.half.begin_round(self._round, SITES)
        downloads = {site: self.half.download(site) for site in SITES}
        spent = time.process_time() - start
        for site, download in downloads.items():
            upload = Upload(site, self._round, {n: t + 0.001 for n, t in download.items()}, 1.0)
            start = time.process_time()
            self.half.fold(upload)
            spent += time.process_time() - start
        start = time.process_time()
        self.half.end_round()
        return spent + time.process_time() - start


def extra_memory(coordinator: Coordinator) -> float:
    """Highest memory of a round beyond what is held between rounds, in MiB."""
    coordinator()  # momentum is made in the first step
    forget_peak()
    before = resident()
    coordinator()
    return (peak() - before) / MIB


def rows(options: Options) -> Iterator[Row]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _rows(options)
    finally:
        torch.set_num_threads(before)


def _rows(options: Options) -> Iterator[Row]:
    net = network(options.quick)
    heads = ("low-rank", "chunked") if options.quick else ("low-rank", "chunked", "full")
    for head in heads:
        coordinator = Coordinator(net, head=head)
        memory = extra_memory(coordinator)
        step, bag = alternate([coordinator, bag_step(net, 20 if options.quick else 1000)], options.repeats)
        rounds = [seconds * BAGS * len(SITES) for seconds in bag]
        share = ratios(step, rounds)
        targets = sum(t.numel() for t in coordinator.initial.values())
        yield Row(
            f"hyper-network of {coordinator.size / 1e6:.3g} M parameters (head = {head}) for {targets:,} weights of "
            f"{len(SITES)} sites, a round, processor time",
            f"{spread([1000 * s for s in step], 'ms')}, {memory:.0f} MiB beyond the "
            f"{2 * 4 * coordinator.size / MIB:.0f} MiB of weights and momentum",
            f"training, {BAGS} bags of 1,000 instances a site: {spread(rounds, 's')}",
            f"{100 * statistics.median(share):.2g} %",
            "≤ 10 % of a round" + ("" if head == "full" else ", ≤ 10 M parameters"),
            None
            if options.quick
            else statistics.median(share) <= SHARE and (head == "full" or coordinator.size <= 10e6),
            "One bag's training step is measured and counted for all bags. A model is "
            f"{nbytes(coordinator.initial) / MIB:.1f} MiB, of which the round's downloads need one for each site.",
        )


if __name__ == "__main__":
    run(rows, __doc__)
