"""Frozen configuration: unknown keys refused with the nearest known one, before any work."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

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
        path = _user_path(error["loc"], error["type"])
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
            guess = _nearest_choice(error["input"], error.get("ctx", {}))
            problems.append(f"'{key}' = {shown}: {error['msg'].removeprefix('Value error, ')}.{guess}")
    return ConfigError(f"{where}: " + " ".join(problems), fix="correct the key named above and run the command again.")


def _user_path(location: tuple[int | str, ...], kind: str) -> list[str]:
    """The keys that the user wrote: pydantic also names its own steps (``function-after[…]``) on the way."""
    own = len(location) - 1 if kind == "extra_forbidden" else None  # this one is the user's, whatever is in it
    return [str(p) for i, p in enumerate(location) if i == own or not (isinstance(p, str) and "[" in p)]


def _nearest_choice(given: Any, context: Mapping[str, Any]) -> str:
    """A suggestion for a value that is none of a field's choices (a Literal or an enumeration)."""
    choices = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    return did_you_mean(given, choices) if isinstance(given, str) else ""


def _keys_at(kind: type[BaseModel], path: list[str]) -> list[str]:
    """Keys known in the table at ``path``; of every member where the table is a union."""
    kinds = [kind]
    for part in path:
        kinds = [nested for k in kinds for nested in _nested(k, part)]
    return list(dict.fromkeys(key for k in kinds for key in k.model_fields))


def _nested(kind: type[BaseModel], part: str) -> list[type[BaseModel]]:
    field = kind.model_fields.get(part)
    if field is None:
        return [kind]  # a free name inside a table of named entries, or an index into a list of tables
    found: list[type[BaseModel]] = []
    todo: list[Any] = [field.annotation]
    while todo:
        annotation = todo.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        todo.extend(get_args(annotation))
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: missing, unreadable, not UTF-8, or not TOML; names the line.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as cause:
        siblings = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise ConfigError(
            f"{path} does not exist.{did_you_mean(path.name, siblings)}", fix="check the path."
        ) from cause
    except IsADirectoryError as cause:
        raise ConfigError(f"{path} is a folder, not a study file.", fix="name the .toml file inside it.") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"{path} is not valid TOML: {cause}.", fix="correct that line; strings need quotes."
        ) from cause
    except OSError as cause:
        raise ConfigError(f"{path} cannot be read: {cause}.", fix="check the file's permissions.") from cause


def override(values: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply ``key.sub=value`` assignments to a copy of ``values``; a value is read as TOML, else as a string.

    Raises:
        ConfigError: an assignment has no ``=`` or an empty key, goes through something that is not a table,
            or starts a list or table that is not TOML.

    Example:
        >>> override({"train": {"lr": 0.1}}, ["train.lr=0.2", "name=a"])
        {'train': {'lr': 0.2}, 'name': 'a'}
    """
    result = _copy(values)
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        *parents, last = (part.strip() for part in key.split("."))
        if not separator or not all([*parents, last]):
            raise ConfigError(f"'{assignment}' is not an override.", fix="write key=value, for example train.lr=0.001.")
        table = result
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise ConfigError(f"'{key}': '{parent}' is a value, not a table.", fix="check the key's spelling.")
        table[last] = _value(text.strip(), key)
    return result


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, dict) else v for k, v in values.items()}


def _value(text: str, key: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError as cause:
        if text[:1] in "[{" and text:  # meant as a list or table: the shell has eaten the quotes, or there were none
            raise ConfigError(
                f"'{key}' = {text}: not a TOML list or table.",
                fix=f'quote the strings inside and, for the shell, the whole: \'{key}=["a", "b"]\'.',
            ) from cause
        return text
    return parsed["value"] if len(parsed) == 1 else text  # text with a line break can hold more than one key
