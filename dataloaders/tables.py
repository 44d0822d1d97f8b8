"""CSV files of datasets: their rows, with the place of each in the file, and all that is wrong with them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dataloaders.annotations import is_blank, read_text, show


@dataclass(frozen=True)
class Row:
    """A row of a CSV file.

    where: the place in the file, for messages. values: column -> stripped text, empty where it is blank or where the
    file lacks a column that it needs. An optional column that the file lacks is not in it.
    """

    where: str
    values: dict[str, str]


def read_table(
    path: str | Path, columns: list[str], unique: str | None = None, optional: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    """The rows of a CSV file with the named columns, and the optional ones if it has them, and its problems.

    unique: the column in which no two rows may have the same, None for none.

    A missing column is one problem and comes back as empty strings, so that the others are checked still; a row with
    too many or too few fields is a problem and does not come back, since any of its fields may be in a wrong place.
    """
    text, problems = read_text(path)
    if problems:
        return [], problems
    records, problems = _read_records(text, path)
    if not records:
        return [], problems or [f"{path} is empty"]
    (line, header), *records = records
    columns = [*columns, *(column for column in optional if column in header)]
    places = {column: header.index(column) for column in columns if column in header}
    if absent := [column for column in columns if column not in places]:
        found = f"{header!s:.200}"
        problems.append(f"line {line} of {path}: needs the columns {columns}; missing {absent}, found {found}")
    problems += [
        f"line {line} of {path}: more than one column {column}" for column in columns if header.count(column) > 1
    ]
    if not records and not problems:
        problems.append(f"{path} has no rows")
    rows: list[Row] = []
    first: dict[str, int] = {}
    for line, fields in records:
        where = f"line {line} of {path}"
        if len(fields) != len(header):
            problems.append(
                f"{where}: {len(fields)} fields, the header has {len(header)}; a text with commas needs quotation marks"
            )
            continue
        values = {column: "" for column in columns}
        values |= {column: fields[place] for column, place in places.items() if not is_blank(fields[place])}
        problems += [f"{where}: empty {column}" for column in places if not values[column]]
        key = values[unique] if unique else ""
        if key in first:
            problems.append(f"{where}: {unique} {show(key)} is there before, in line {first[key]}")
        elif key:
            first[key] = line
        rows.append(Row(where, values))
    return rows, problems


def _read_records(text: str, path: str | Path) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """The records of a CSV text and the number of each one's first line, and the problem that ended the reading.

    Blank lines are no records.
    """
    # Strict: else a quotation mark that is never closed silently makes one field of all that follows.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records = []
    line = 1
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if len(fields) > 1 or any(fields):
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        reason = f"cannot be read as CSV ({error}); probably a quotation mark that is never closed"
        return records, [f"line {line} of {path}: {reason}, or one in a text that is not doubled"]
    return records, []
