"""``--option NAME=VALUE`` and its like, given as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence

from morphfed.core.errors import ConfigError


def pairs(given: Sequence[str] | None, flag: str, example: str) -> dict[str, str]:
    """What was given, by name.

    Raises:
        ConfigError: one of them is not NAME=VALUE.
    """
    found = [(text.partition("="), text) for text in given or ()]
    for (name, separator, value), text in found:
        if not (name and separator and value):
            raise ConfigError(f"{flag} {text}: not NAME=VALUE.", fix=f"write for example {flag} {example}.")
    return {name: value for (name, _, value), _ in found}
