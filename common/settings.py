"""Settings as frozen dataclasses, with the command line made from them.

A field's metadata holds its help and choices, so that a setting is written down in one place; the parser at the edge of
a program, the constructor that takes the value and ``config.json`` all follow from it.
"""

import argparse
import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# what a flag wants, where its setting does not say
METAVARS = {int: "NUMBER", float: "NUMBER", Path: "PATH", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting takes; infinities and NaN are in none.

    Attributes:
        low, high: the bounds. low_open, high_open: whether a bound itself is left out.
    """

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low or (value == self.low and not self.low_open)
        below = value < self.high or (value == self.high and not self.high_open)
        return above and below and value not in (math.inf, -math.inf)  # NaN is neither above nor below

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{'above' if self.low_open else 'at least'} {self.low}"
        if self.low_open:
            return f"above {self.low} and at most {self.high}"
        return f"at least {self.low} and below {self.high}" if self.high_open else f"{self.low} to {self.high}"


def at_least(low: float) -> Range:
    """`low` and all above it."""
    return Range(low)


def above(low: float, high: float = math.inf) -> Range:
    """All above `low`, up to `high`."""
    return Range(low, high, low_open=True)


def between(low: float, high: float, high_open: bool = False) -> Range:
    """`low` to `high`, both included unless `high_open` leaves out the upper one."""
    return Range(low, high, high_open=high_open)


def setting(
    default: Any,
    help: str,
    choices: tuple | None = None,
    affects_results: bool = True,
    training_only: bool = False,
    within: Range | None = None,
    metavar: str | None = None,
    former: Any = dataclasses.MISSING,
    alone: Any = dataclasses.MISSING,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its default value; `dataclasses.MISSING` where the user has to give one.
        help: one line for ``--help``, with the paper's symbol where there is one.
        choices: the allowed values.
        affects_results: False for what may change between a run and its resumption.
        training_only: True for what makes no difference to a trained model.
        within: the numbers allowed; every number that has no `choices` needs it. See `range_problems`.
        metavar: what ``--help`` calls the value (``SECONDS``, ``FOLDER``); None for what fits its type.
        former: what runs did before there was this setting, for their checkpoints; its default where not given.
        alone: what the flag without a value means; where not given, it needs one, but for a bool.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "affects_results": affects_results,
        "training_only": training_only,
        "within": within,
        "metavar": metavar,
        "former": default if former is dataclasses.MISSING else former,
        "alone": alone,
    }
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def add_arguments(
    parser: argparse.ArgumentParser, settings: type, title: str, defaults: Mapping[str, Any] | None = None
) -> None:
    """Add a flag for every field of a settings class, in a group of its own.

    Args:
        parser: to add them to.
        settings: the class.
        title: of the group.
        defaults: values that ``--help`` names in place of the class's own; other names do not matter.

    A bool that is False gets a plain flag; one that is True also gets ``--no_…``. A flag that is not given leaves
    nothing in the namespace, so that `from_arguments` can tell.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        flag, metadata = f"--{field.name}", field.metadata
        kind = _plain_type(hints[field.name])
        default = (defaults or {}).get(field.name, field.default)
        help = f"{metadata['help']}{_remarks(field, default)}".replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            group.add_argument(flag, action=action, default=argparse.SUPPRESS, help=help)
        else:
            may_stand_alone = metadata["alone"] is not dataclasses.MISSING
            group.add_argument(
                flag,
                **({"nargs": "?", "const": metadata["alone"]} if may_stand_alone else {}),
                type=kind,
                default=argparse.SUPPRESS,
                required=field.default is dataclasses.MISSING,
                choices=metadata["choices"],
                metavar=None if metadata["choices"] else metadata["metavar"] or METAVARS[kind],
                help=help,
            )


def _remarks(field: dataclasses.Field, default: Any) -> str:
    """What stands behind a flag's help: the numbers that it takes, and its default."""
    remarks = []
    if field.metadata["within"] is not None:
        remarks.append(str(field.metadata["within"]))
    if default is dataclasses.MISSING:
        remarks.append("required")
    elif default not in (None, False) or type(default) in (int, float):
        remarks.append(f"default: {default}")
    return f" ({'; '.join(remarks)})" if remarks else ""


def from_arguments(settings: type[T], args: argparse.Namespace, defaults: Mapping[str, Any] | None = None) -> T:
    """A settings object from the flags that were given.

    Args:
        settings: its class.
        args: the parsed flags, without those that were not given.
        defaults: values in place of the class's own for what was not given; other names do not matter.
    """
    names = [field.name for field in dataclasses.fields(settings)]
    values = {name: value for name, value in (defaults or {}).items() if name in names}
    return settings(**values | {name: value for name, value in vars(args).items() if name in names})


def range_problems(*parts: Any) -> list[str]:
    """A line for every number in some settings objects that is out of its range, and for what does not fit together.

    The latter is what a settings class says itself, by a method `problems` that returns such lines.
    """
    problems = []
    for part in parts:
        problems += part.problems() if hasattr(part, "problems") else []
        for field in dataclasses.fields(part):
            within, value = field.metadata["within"], getattr(part, field.name)
            if within is not None and value is not None and value not in within:
                problems.append(f"--{field.name} must be {within}, found {value}")
    return problems


def result_settings(*parts: Any) -> dict[str, Any]:
    """Of some settings objects, all that affects results, by name."""
    return {
        field.name: as_json(getattr(part, field.name))
        for part in parts
        for field in dataclasses.fields(part)
        if field.metadata["affects_results"]
    }


def model_settings(part: Any) -> dict[str, Any]:
    """Of a settings object, all that a trained model depends on, by name."""
    return {
        field.name: as_json(getattr(part, field.name))
        for field in dataclasses.fields(part)
        if not field.metadata["training_only"]
    }


def former_settings(*classes: type) -> dict[str, Any]:
    """Of some settings classes, what a checkpoint that lacks a setting was made with, by name."""
    return {
        field.name: as_json(field.metadata["former"])
        for settings in classes
        for field in dataclasses.fields(settings)
        if field.metadata["former"] is not dataclasses.MISSING
    }


def all_settings(*parts: Any) -> dict[str, Any]:
    """Of some settings objects, every field, by name."""
    return {f.name: as_json(getattr(part, f.name)) for part in parts for f in dataclasses.fields(part)}


def as_json(value: Any) -> Any:
    """A value as JSON holds it: paths become strings."""
    return str(value) if isinstance(value, Path) else value


def _plain_type(hint: Any) -> type:
    """The type of a flag's value from `type`, `type | None` or, where a flag may stand alone, `type | bool`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg not in (type(None), bool))
    return hint
