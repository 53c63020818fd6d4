"""``morphfed list`` and ``morphfed show``."""

from __future__ import annotations

import sys
from typing import Any, Literal

Kind = Literal["algorithms", "models", "heads", "sources", "classes"]


def list_(kind: Kind, filter: str = "*", /) -> int:
    """List what there is.

    Args:
        kind: algorithms, models, heads (of bags), sources or classes.
        filter: for models, a pattern such as 'resnet*'; 'torchvision' lists torchvision's.
    """
    how = {"algorithms": _algorithms, "heads": _heads, "sources": _sources, "classes": _classes}
    how.get(kind, lambda: _models(filter))()
    return 0


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _algorithms() -> None:
    from morphfed.algorithms.base import ALGORITHMS

    rows = [
        [n, a.title, a.facts.travels, a.facts.stays, a.facts.memory, a.facts.cost, a.paper]
        for n, a in ALGORITHMS.items()
    ]
    columns = ["name", "what", "travels", "stays", "coordinator memory", "cost a round", "paper"]
    _table("algorithms", columns, rows)
    sys.stdout.write("next: morphfed show NAME\n")


def _models(pattern: str) -> None:
    if pattern.startswith("torchvision"):
        from torchvision import models

        names = [f"torchvision/{n}" for n in models.list_models(module=models)]
    else:
        import timm

        names = timm.list_models(pattern)
    for name in names:
        sys.stdout.write(f"{name}\n")


def _heads() -> None:
    from morphfed.models.mil import HEADS

    rows = [[f"mil/{n}", h.title, h.equation, ", ".join(h.Config.model_fields), h.paper] for n, h in HEADS.items()]
    _table("heads of bags", ["model.name", "what", "logits", "model.options", "paper"], rows)
    sys.stdout.write("next: morphfed show mil/NAME\n")


def _sources() -> None:
    from morphfed.data.sources.base import SOURCES

    _table("sources", ["name", "what it reads"], [[name, source.title] for name, source in SOURCES.items()])
    sys.stdout.write("next: morphfed data init DIR --source NAME\n")


def _classes() -> None:
    from morphfed.data.ontology import load_ontology

    ontology = load_ontology()
    roots = [node for node in ontology.nodes if not ontology.ancestors(node)]

    def walk(node: str, depth: int) -> None:
        sys.stdout.write(f"{'  ' * depth}{node}\n")
        for child in ontology.children(node):
            walk(child, depth + 1)

    sys.stdout.write(f"ontology version {ontology.version}\n")
    for root in roots:
        walk(root, 0)


def show(name: str, /) -> int:
    """Explain one algorithm, model, head, source or class.

    Args:
        name: as `morphfed list` prints it.
    """
    from morphfed.algorithms.base import ALGORITHMS
    from morphfed.core.errors import ConfigError, did_you_mean
    from morphfed.data.ontology import load_ontology
    from morphfed.data.sources.base import SOURCES
    from morphfed.models.mil import HEADS

    if name in ALGORITHMS.names():
        _show_algorithm(ALGORITHMS[name])
    elif name.removeprefix("mil/") in HEADS.names():
        _show_head(name.removeprefix("mil/"))
    elif name in SOURCES.names():
        _show_source(name)
    elif name in load_ontology().nodes:
        ontology = load_ontology()
        above = " < ".join(ontology.ancestors(name)) or "nothing"
        below = ", ".join(ontology.children(name)) or "nothing"
        sys.stdout.write(f"class {name}\n  is a: {above}\n  includes: {below}\n")
    elif not _show_model(name):
        known = [*ALGORITHMS.names(), *HEADS.names(), *SOURCES.names(), *load_ontology().nodes]
        raise ConfigError(
            f"'{name}' is no algorithm, model, head, source or class.{did_you_mean(name, known)}",
            fix="`morphfed list algorithms|models|heads|sources|classes` prints the names.",
        )
    return 0


def _show_algorithm(algorithm: Any) -> None:
    facts = algorithm.facts
    sys.stdout.write(f"{algorithm.name}: {algorithm.title}\n  {algorithm.equation}\n  paper: {algorithm.paper}\n")
    sys.stdout.write(f"  travels: {facts.travels}\n  stays: {facts.stays}\n  coordinator memory: {facts.memory}\n")
    sys.stdout.write(f"  cost a round: {facts.cost}\n\nin a study:\n  [arms.{algorithm.name}]\n")
    for key, field in algorithm.config.model_fields.items():
        default = "…" if field.is_required() else repr(field.default)
        sys.stdout.write(f"  {key} = {default}    # {field.description}\n")


def _show_head(name: str) -> None:
    """A head's equation, options, and sizes on CLAM's features."""
    from morphfed.models.mil import HEADS, PARTS, build_head, part_keys

    kind, head = HEADS[name], build_head(name, 1024, 2)
    state = head.state_dict()
    sizes = {part: sum(state[key].numel() for key in part_keys(head, part)) for part in PARTS}
    sys.stdout.write(f"multiple-instance head {name}: {kind.title}\n  {kind.equation}\n  paper: {kind.paper}\n")
    sys.stdout.write(f"  the order of instances {'matters' if kind.order_matters else 'does not matter'}\n")
    parts = ", ".join(f"{part} {size:,}" for part, size in sizes.items())
    sys.stdout.write(
        f"  parameters with 1,024 features and two classes: {sum(sizes.values()):,} ({parts})\n  options:\n"
    )
    for key, field in kind.Config.model_fields.items():
        sys.stdout.write(f"    {key} = {field.default!r}    # {field.description}\n")


def _show_source(name: str) -> None:
    from inspect import cleandoc

    from morphfed.data.drafting import COMMON_OPTIONS
    from morphfed.data.ontology import load_ontology
    from morphfed.data.sources.base import SOURCES

    source, table = SOURCES[name], load_ontology().tables.get(name)
    sys.stdout.write(f"source {name}: {source.title}\n{cleandoc(source.__doc__ or '')}\n")
    if table and table.reference:
        sys.stdout.write(f"  reference: {table.reference}\n")
    sys.stdout.write("  options:\n")
    for option, what in {**source.options, **COMMON_OPTIONS}.items():
        sys.stdout.write(f"    {option}: {what}\n")
    if table and table.unmapped:
        sys.stdout.write(f"  mapped to no cell type: {', '.join(table.unmapped)}\n")


def _transfers(network: Any, name: str) -> list[tuple[str, str]]:
    """Megabytes of what each way of tuning sends."""
    from morphfed.core.errors import ConfigError, MissingExtraError
    from morphfed.core.types import nbytes
    from morphfed.models.backbone import ModelConfig
    from morphfed.models.layout import Layout
    from morphfed.models.tuning import apply

    found = []
    for mode in ("full", "last-2", "last-1", "head", "lora"):  # lora last: it changes the layers
        try:
            apply(network.module, ModelConfig(name=name, tune=mode), network.head)
        except (ConfigError, MissingExtraError) as cause:
            found.append((mode, cause.message))
            continue
        state = network.module.state_dict()
        size = nbytes({k: state[k] for k in Layout.of(network.module, network.head).order}) / 1e6
        found.append((mode, f"{size:.1f} MB" if size >= 1 else f"{size:.2g} MB"))
    return found


def _show_model(name: str) -> bool:
    from morphfed.core.errors import ConfigError
    from morphfed.models.backbone import ModelConfig, build

    try:
        network = build(ModelConfig(name=name), classes=2, image_size=224, seed=0)
    except ConfigError:
        return False
    parameters = sum(p.numel() for p in network.module.parameters())
    sys.stdout.write(f"model {name}\n  {parameters / 1e6:.2f} M parameters with two classes\n")
    sys.stdout.write(f"  normalisation: mean {network.mean}, std {network.std}\n  a transfer in fp32, by model.tune:\n")
    for mode, size in _transfers(network, name):
        sys.stdout.write(f"    {mode:<8} {size}\n")
    sys.stdout.write(f'in a study:\n  [model]\n  name = "{name}"\n')
    return True
