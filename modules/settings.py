"""Settings as frozen dataclasses, with the command line made from them.

A field's metadata holds its help and choices, so that a setting is written down in one place; the parser at the edge of
a program, the constructor that takes the value and ``config.json`` all follow from it.
"""

import argparse
import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def setting(
    default: Any,
    help: str,
    choices: tuple | None = None,
    affects_results: bool = True,
    training_only: bool = False,
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its default value; `dataclasses.MISSING` where the user has to give one.
        help: one line for ``--help``, with the paper's symbol where there is one.
        choices: the allowed values.
        affects_results: False for what may change between a run and its resumption.
        training_only: True for what makes no difference to a trained model.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "affects_results": affects_results,
        "training_only": training_only,
    }
    return dataclasses.field(default=default, metadata=metadata, kw_only=True)


def add_arguments(parser: argparse.ArgumentParser, settings: type, title: str) -> None:
    """Add a flag for every field of a settings class, in a group of its own.

    A bool that is False gets a plain flag; one that is True also gets ``--no_…``.
    """
    group = parser.add_argument_group(title)
    hints = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        flag = f"--{field.name}"
        required = field.default is dataclasses.MISSING
        text = field.metadata["help"]
        kind = _plain_type(hints[field.name])
        if not required and field.default not in (None, False):
            text += f" (default: {field.default})"
        text = text.replace("%", "%%")
        if kind is bool:
            action = argparse.BooleanOptionalAction if field.default else "store_true"
            group.add_argument(flag, action=action, default=field.default, help=text)
        else:
            group.add_argument(
                flag,
                type=kind,
                default=None if required else field.default,
                required=required,
                choices=field.metadata["choices"],
                metavar=None if field.metadata["choices"] else field.name.upper(),
                help=text,
            )


def from_arguments(settings: type[T], args: argparse.Namespace) -> T:
    """A settings object from parsed flags."""
    return settings(**{field.name: getattr(args, field.name) for field in dataclasses.fields(settings)})


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


def all_settings(*parts: Any) -> dict[str, Any]:
    """Of some settings objects, every field, by name."""
    return {f.name: as_json(getattr(part, f.name)) for part in parts for f in dataclasses.fields(part)}


def as_json(value: Any) -> Any:
    """A value as JSON holds it: paths become strings."""
    return str(value) if isinstance(value, Path) else value


def _plain_type(hint: Any) -> type:
    """The type itself from `type` or `type | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint
