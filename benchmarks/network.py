"""A federation across a network: what a round costs through nginx, TLS and keys, over slow links, with many sites.

    python benchmarks/network.py [--quick] [--repeats 5]
    MORPHFED_NETWORK=noop,slow python benchmarks/network.py  # some of: start noop large dead slow memory memory-small

Runs where Flower is installed (`make test-network` makes such an environment). Sites are stubs that speak the whole
protocol and train nothing, each with uploads of its own; so what is measured is everything but the training. Slow links
are network namespaces with a token bucket either way, which need root.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from _federation import Rounds, events, idle, machines, needs, stubs, study
from _table import MIB, NotMeasuredError, Options, Row, run, spread
from morphfed.core.memory import LARGE_PAGES

os.environ.update(LARGE_PAGES)  # as in the service files

SMALL, TEN, MIDDLE, LARGE = "test_resnet", "mixnet_s", "resnet10t", "resnet34"
"""timm's names: 1.5, 10.5, 19.7 and 85.2 MB of weights and statistics."""

TWO = ("alder", "birch")
CODED = '\nupload = "int8"\ndownload = "bf16"'
SPARSE = '\nupload = { code = "topk", share = 0.02 }\ndownload = "bf16"'
NOTE = (
    "nginx, TLS, keys, Flower's server with its database, the coordinator's checkpoint: all on this machine. A round "
    "is from one question to train to the next. Rival: flwr 1.41 as shipped, measured on a 2-core machine (±25 %)."
)


def cost(found: Rounds) -> str:
    """Seconds and processor time of a round."""
    return f"{spread(found.seconds[1:] or found.seconds, 's')}; processor {found.cpu:.2f} s in all processes"


def row(what: str, found: Rounds, rival: str, target: float, options: Options, note: str = NOTE) -> Row:
    """A round against its target."""
    seconds = median(found.seconds[1:] or found.seconds)
    met = None if options.quick else seconds <= target
    return Row(what, cost(found), rival, target=f"≤ {target:g} s", met=met, note=note)


def noop(options: Options) -> Iterator[Row]:
    found = idle(study(SMALL, TWO, 3 if options.quick else options.repeats + 2), TWO, processes=2)
    yield row("a round without training, 1.5 MB of weights", found, "12.6 – 13.8 s (ten values)", 5, options)


def large(options: Options) -> Iterator[Row]:
    found = idle(study(LARGE, TWO, options.repeats + 1), TWO, processes=2)
    yield row("a round without training, 85 MB of weights", found, "18.5 – 19.9 s", 9, options)


def memory(options: Options, model: str = LARGE, size: str = "85 MB") -> Iterator[Row]:
    """The coordinator's peak, and what Flower's server takes."""
    seen = {}
    for count in (2, 20):
        sites = tuple(f"site-{number:02d}" for number in range(count))
        seen[count] = idle(study(model, sites, 2), sites)
    peaks = {n: {name: p.peak / MIB for name, p in found.seen.items()} for n, found in seen.items()}
    coordinator = [p["coordinator"] for p in peaks.values()]
    ratio = coordinator[1] / coordinator[0]
    server = ", ".join(f"{p['server']:,.0f} MiB and {seen[n].disk / MIB:,.0f} MiB of disk" for n, p in peaks.items())
    yield Row(
        f"memory of the coordinator, 2 and 20 sites, {size} of weights",
        f"{coordinator[0]:,.0f} and {coordinator[1]:,.0f} MiB; Flower's server {server}",
        "N models",
        f"{ratio:.2f}",
        "flat (≤ 1.1)",
        None if options.quick else ratio <= 1.1,
        "Highest resident memory of the process, torch and all, over two rounds.",
    )


def coded_upload(text: str, folder: Path) -> None:
    """A coded upload of random changes for each stub, in the federation's folder."""
    import torch

    from morphfed.deploy.agreed import load_agreed
    from morphfed.deploy.review import network_of
    from morphfed.federation.transports.parcel import Parcel, pack

    path = folder / "coded.toml"
    path.write_text(text)
    agreed = load_agreed(path)
    network = network_of(agreed.units[0], agreed, torch.device("cpu"))
    download = network.coordinator().download("")
    opened = network.coding.open(network.coding.send({"": download})[""])
    for seed, site in enumerate(TWO):  # each its own: Flower keeps equal objects once
        torch.manual_seed(seed)
        trained = {n: t + 1e-6 * torch.randn_like(t) if t.is_floating_point() else t for n, t in download.items()}
        tensors, _ = network.coding.encode(trained, opened, {}, site=site, round_number=1)
        (folder / f"upload-{site}.parcel").write_bytes(pack(Parcel("answer", {}, tensors)))


def slow(options: Options) -> Iterator[Row]:
    """One site behind a slow link, the other beside the coordinator. MORPHFED_LINKS chooses cases by number."""
    cases = [
        ("2 Mbit/s both ways, fp32", "", "2mbit", "2mbit", 3, "192 s", None),
        ("2 Mbit/s both ways, int8 up, bf16 down", CODED, "2mbit", "2mbit", 4, "192 s (fp32, the only one)", 30.0),
        ("2 Mbit/s both ways, topk 2 % up, bf16 down", SPARSE, "2mbit", "2mbit", 4, "192 s (fp32, the only one)", 30.0),
        ("0.2 Mbit/s up, 2 down, int8 up, bf16 down", CODED, "200kbit", "2mbit", 2, "update lost", None),
        ("0.2 Mbit/s up, 2 down, fp32", "", "200kbit", "2mbit", 2, "update lost", None),
    ]
    chosen = os.environ.get("MORPHFED_LINKS", "01234")
    for number, (what, coding, up, down, rounds, rival, target) in enumerate(cases):
        if str(number) not in chosen:
            continue
        try:
            found, rejected = behind(number, study(TEN, TWO, rounds, federation=coding), up, down)
        except NotMeasuredError as why:
            yield Row(f"10.5 MB, {what}", f"not measured ({number + 1} of {len(cases)}): {why}")
            continue
        text = f"{spread(found, 's')} a round; {len(rejected)} uploads left out"
        met = not rejected if target is None and "lost" in rival else target and median(found) <= target
        aim = "takes part" if target is None else f"≤ {target:g} s"
        named = target is not None or "lost" in rival
        yield Row(f"10.5 MB, {what}", text, rival, target=aim if named else "–", met=bool(met) if named else None)


def behind(number: int, text: str, up: str, down: str) -> tuple[list[float], list[object]]:
    """Rounds with birch behind a link, from the second on, and uploads that were left out."""
    from tests.machines import Namespace, NoNamespaceError

    from _federation import UNIT

    needs()
    try:
        with Namespace(200 + number, up=up, down=down) as link, machines(text, host=link.host) as made:
            if "upload" in text:
                coded_upload(text, made.folder / "fed")
            command = [sys.executable, str(Path(__file__).with_name("_stub_sites.py")), "fed"]
            made.prefixes["birch"] = link.prefix
            for site in TWO:
                made.start_command(site, [*command, site])
            made.coordinate()
            if made.running["coordinator"].wait(3600):
                raise NotMeasuredError(f"the coordinator failed: {made.log('coordinator')[-300:]}")
            unit = json.loads((made.folder / "fed/run" / UNIT / "unit.json").read_text())
            return [entry["seconds"] for entry in unit["history"][1:]], unit["rejected"]
    except NoNamespaceError as why:
        raise NotMeasuredError(str(why)) from why


def dead(options: Options) -> Iterator[Row]:
    """One of three sites is killed: when `federation status` no longer calls it connected, and when the run goes on."""
    sites = ("alder", "birch", "cedar")
    needs()
    with machines(study(SMALL, sites, 1000)) as made:
        names = stubs(made, sites, 3)
        made.coordinate()
        _until(lambda: len([e for e in events(made, names[0]) if e["kind"] == "train"]) > 2, made)
        made.kill(names[2])
        killed = time.time()
        status = made.folder / "fed/run/status.json"
        _until(lambda: not _connected(status, "cedar"), made)
        noticed = time.time() - killed
        _until(lambda: "waiting for cedar" in made.log("coordinator"), made)
        _until(lambda: "Site 'cedar': not connected" in made.log("coordinator"), made)
        gone = time.time() - killed
        rounds = len([e for e in events(made, names[0]) if e["kind"] == "train"])
        _until(lambda: len([e for e in events(made, names[0]) if e["kind"] == "train"]) > rounds + 1, made)
        waits = made.waits["absent"]
    yield Row(
        "a site that was killed is noticed, named, and the run goes on with the others",
        f"{noticed:.0f} s; goes on after {gone:.0f} s (absent = {waits:g})",
        "59 s, then waits for ever",
        target="≤ 60 s",
        met=None if options.quick else noticed <= 60,
    )


def _connected(status: Path, site: str) -> bool:
    return any(s["name"] == site and s["state"] != "away" for s in json.loads(status.read_text())["sites"])


def _until(true: Callable[[], bool], made: object, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (OSError, ValueError):
            pass
        if time.monotonic() > end:
            raise NotMeasuredError(f"no end after {seconds:.0f} s: {made.log('coordinator')[-300:]}")  # type: ignore[attr-defined]
        time.sleep(0.2)


def start(options: Options) -> Iterator[Row]:
    """A message at the resident worker until the first step of training, from the second round on."""
    for model in (SMALL,) if options.quick else (SMALL, LARGE):
        wall, cpu = first_steps(model, 2 if options.quick else options.repeats)
        yield Row(
            f"a message at the site until its first step, {model}",
            f"{spread(wall, 's')}; processor {spread(cpu, 's')}",
            "start of a process, imports, images",
            target="≤ 0.5 s",
            met=None if options.quick else median(wall) <= 0.5,
            note="The message is read, checked, its model filled in, the state loaded: until the first forward pass.",
        )


def first_steps(model: str, rounds: int) -> tuple[list[float], list[float]]:
    """Wall and processor seconds by round, the first left out."""
    from tests import links
    from tests.links import FakeClock, MemoryLink

    from morphfed.data.drafting import draft
    from morphfed.data.synthetic import PRESETS, write_films
    from morphfed.deploy.agreed import load_agreed
    from morphfed.deploy.consent import approve
    from morphfed.deploy.coordinator import train_over
    from morphfed.deploy.deployment import Deployment
    from morphfed.deploy.provision import FederationSettings
    from morphfed.deploy.resident import Resident
    from morphfed.deploy.review import review
    from morphfed.experiment.study import SiteConfig
    from morphfed.privacy.ledger import ChainedLedger
    from morphfed.training import trainer

    links.LIMIT = 1 << 28  # it reads what it carries
    asked, found = (0.0, 0.0), list[tuple[float, float]]()
    begin = trainer._begin

    def noted(*arguments: object) -> None:
        nonlocal asked
        if asked[0]:
            found.append((time.perf_counter() - asked[0], time.process_time() - asked[1]))
            asked = (0.0, 0.0)
        begin(*arguments)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        path = here / "study.toml"
        path.write_text(study(model, TWO, rounds + 1))
        classes = ("neutrophil", "lymphocyte")
        write_films(here / "films", [PRESETS[name] for name in TWO], dict.fromkeys(classes, 14), seed=0, patients=7)
        agreed = load_agreed(path)
        desks = {}
        for site in TWO:
            approve(here / site, path, review(agreed))
            draft(here / "films" / site, site=site).manifest.write(here / f"{site}.csv")
            config = SiteConfig(path=str(here / f"{site}.csv"))
            resident = Resident(site, here / site, config, ChainedLedger(here / site / "ledger.jsonl"))

            def answer(content: bytes, resident: Resident = resident) -> bytes:
                nonlocal asked
                asked = (time.perf_counter(), time.process_time())
                try:
                    return resident.answer(content)
                finally:
                    asked = (0.0, 0.0)

            desks[site] = answer
        trainer._begin = noted
        try:
            settings = FederationSettings(name="x", host="localhost", port=443, gather=1.0)
            on = Deployment(MemoryLink(desks, FakeClock()), agreed, settings, here / "run")
            train_over(on, agreed.units[0])
        finally:
            trainer._begin = begin
    later = found[len(TWO) :]
    return [wall for wall, _ in later], [cpu for _, cpu in later]


PARTS: dict[str, Callable[[Options], Iterator[Row]]] = {
    "start": start,
    "noop": noop,
    "large": large,
    "dead": dead,
    "slow": slow,
    "memory-small": lambda options: memory(options, MIDDLE, "20 MB"),
    "memory": memory,
}


def rows(options: Options) -> Iterator[Row]:
    wanted = os.environ.get("MORPHFED_NETWORK", "noop" if options.quick else ",".join(PARTS)).split(",")
    for number, (name, part) in enumerate(PARTS.items()):
        if name in wanted:
            try:
                yield from part(options)
            except NotMeasuredError as why:
                yield Row(f"over a network: {name}", f"not measured ({number + 1} of {len(PARTS)}): {why}")


if __name__ == "__main__":
    run(rows, __doc__)
