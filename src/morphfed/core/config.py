"""Frozen configuration: unknown keys refused with the nearest known one, before any work."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from morphfed.core.errors import ConfigError, did_you_mean

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


def validate(kind: type[C], values: Mapping[str, Any], *, where: str) -> C:
    """Build ``kind`` from ``values``.

    Args:
        where: what the user knows these values by, such as the study file's path.

    Raises:
        ConfigError: names the key, what was expected and the nearest known key.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as cause:
        raise _explain(kind, cause, where) from cause


def _explain(kind: type[BaseModel], cause: ValidationError, where: str) -> ConfigError:
    problems = []
    for error in cause.errors():
        path = [str(p) for p in error["loc"] if not (isinstance(p, str) and ("[" in p or "-" == p))]
        key = ".".join(path) or "(top level)"
        if error["type"] == "extra_forbidden":
            known = _keys_at(kind, path[:-1])
            listed = f" Known here: {', '.join(sorted(known))}." if known else ""
            problems.append(f"unknown key '{key}'.{did_you_mean(path[-1], known)}{listed}")
        elif error["type"] == "missing":
            problems.append(f"key '{key}' is missing.")
        else:
            given = repr(error["input"])
            shown = given if len(given) <= 60 else given[:57] + "…"
            problems.append(f"'{key}' = {shown}: {error['msg'].removeprefix('Value error, ')}.")
    return ConfigError(f"{where}: " + " ".join(problems), fix="correct the key named above and run the command again.")


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = kind
    for part in path:
        current = _nested(current, part)
        if current is None:
            return []
    return list(current.model_fields)


def _nested(kind: type[BaseModel], part: str) -> type[BaseModel] | None:
    from typing import get_args

    field = kind.model_fields.get(part)
    if field is None:
        return kind  # a free name inside a table of named entries
    todo: list[Any] = [field.annotation]
    while todo:
        annotation = todo.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
        todo.extend(get_args(annotation))
    return None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: missing, not UTF-8, or not TOML; names the line.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as cause:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigError(f"{path} does not exist.{did_you_mean(path.name, siblings)}", fix="check the path.") from cause
    except IsADirectoryError as cause:
        raise ConfigError(f"{path} is a folder, not a study file.", fix="name the .toml file inside it.") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(f"{path} is not valid TOML: {cause}.", fix="correct that line; strings need quotes.") from cause


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``key.sub=value`` assignments to a copy of ``values``; a value is read as TOML, else as a string.

    Raises:
        ConfigError: an assignment has no ``=``, or goes through something that is not a table.

    Example:
        >>> override({"train": {"lr": 0.1}}, ["train.lr=0.2", "name=a"])
        {'train': {'lr': 0.2}, 'name': 'a'}
    """
    result = _copy(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"'{assignment}' is not an override.", fix="write key=value, for example train.lr=0.001.")
        *parents, last = key.strip().split(".")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"'{key}': '{parent}' is a value, not a table.", fix="check the key's spelling.")
        table[last] = _value(text.strip())
    return result


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
