"""Checks of settings: frozen dataclasses of plain values, each of its type and one of those that are known."""

import os
import types
from collections.abc import Callable, Collection, Iterable
from dataclasses import fields
from typing import Any, get_args

TYPES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}


def check_choices(settings, of: str = "", **known: Collection[str]):
    """Raise ValueError for a field whose value is none of the known ones.  `of` begins the sentence."""
    for name, values in known.items():
        check_fields(settings, (name,), values.__contains__, f"one of {', '.join(values)}", of)


def check_fields(settings, names: Iterable[str], holds: Callable[[Any], bool], words: str, of: str = ""):
    """Raise ValueError, "NAME is VALUE; it must be WORDS", for a field whose value does not hold."""
    for name in names:
        if not holds(getattr(settings, name)):
            raise ValueError(f"{of}{name} is {getattr(settings, name)!r}; it must be {words}")


def make_plain(settings, name: str):
    """Turn the values of a frozen dataclass that come from NumPy, and paths, into plain types, as files hold them.

    Raises ValueError naming the settings, the field and the value where the type is not that of the field.
    """
    for each in fields(settings):
        value = _plain(getattr(settings, each.name))
        kinds = get_args(each.type) if isinstance(each.type, types.UnionType) else (each.type,)
        if set(kinds) <= TYPES.keys() and type(value) not in kinds and (type(value), kinds[0]) != (int, float):
            words = " or ".join(TYPES[kind] for kind in kinds)
            raise ValueError(f"{name}: {each.name} is {value!r}; it must be {words}")
        object.__setattr__(settings, each.name, value)


def _plain(value):
    if hasattr(value, "tolist"):  # a number or an array
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
