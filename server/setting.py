"""One setting: how its text is read, and what is said when it cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct


class SettingError(Exception):
    """A variable has a value that cannot be used. The message is one sentence that names it."""


class Kind(Struct, frozen=True):
    """`read` raises `ValueError` for what is not `name`."""

    name: str
    read: Callable[[str], Any]


class Setting(Struct, frozen=True):
    """A variable of the environment, and the field of the configuration that it fills.

    `default` is text as one would set it; without one, the field's own default stands.
    """

    variable: str
    section: str
    field: str
    kind: Kind
    meaning: str
    default: str | None = None

    def read(self, text: str) -> Any:
        """Raises `SettingError`."""
        try:
            return self.kind.read(text.strip())
        except ValueError as error:
            said = str(error)
            # Some kinds have a sentence of their own. A value is not repeated: it may hold a password.
            sentence = said if self.variable in said else f"{self.variable} must be {self.kind.name}."
            raise SettingError(sentence) from None


def whole(least: int, most: int) -> Kind:
    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,18}", text) and least <= int(text) <= most:
            return int(text)
        raise ValueError

    return Kind(f"a whole number from {least} to {most}", read)


def number(least: float, most: float) -> Kind:
    def read(text: str) -> float:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?", text) and least <= float(text) <= most:
            return float(text)
        raise ValueError

    return Kind(f"a number from {least:g} to {most:g}", read)


def one_of(*names: str) -> Kind:
    def read(text: str) -> str:
        if text.upper() in names:
            return text.upper()
        raise ValueError

    return Kind(f"one of {', '.join(names)}", read)


def _switch(text: str) -> bool:
    if text not in {"0", "1"}:
        raise ValueError
    return text == "1"


def _host(text: str) -> str:
    if not re.fullmatch(r"[0-9A-Za-z.:_-]{1,255}", text):
        raise ValueError
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,512}=*", text):
        raise ValueError
    return text


SWITCH = Kind("0 or 1", _switch)
HOST = Kind("a host name or an IP address", _host)
TOKEN = Kind("16 to 512 letters, digits and `-._~+/`", _token)  # RFC 6750, 2.1; what is shorter can be guessed
