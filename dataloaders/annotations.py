"""What readers of annotation files share: text, JSON and folders, and one error for all that is wrong with them."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError

MAX_LISTED_PROBLEMS = 10
MAX_CAPTION_WORDS = 1000
# Also what has no width and is no space to `str.strip`: soft hyphen, zero-width spaces and joiners, byte order mark.
BLANK = re.compile(r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*")
# Halves of a surrogate pair, which JSON can write and UTF-8 cannot; both would fail only in the tokenizer or later.
UNUSABLE = re.compile("[\0\ud800-\udfff]")
# UTF-32 first: its mark of little-endian text begins with that of UTF-16.
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class AnnotationError(UserError):
    """A dataset's files do not fit together; the message lists the problems and says what to do."""


def raise_if_problems(source: str, problems: Sequence[str], *remedies: str) -> None:
    """Raises one AnnotationError for all problems of a source, so that one run shows all there is to repair.

    source: what was read, with its path. problems: one line each; the first ten are shown, and the count of
    all. remedies: a sentence each, of what the person who reads the message should do.
    """
    if not problems:
        return
    lines = [f"{source}: {len(problems)} problem{'s' if len(problems) > 1 else ''}"]
    lines += [f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS]]
    if len(problems) > MAX_LISTED_PROBLEMS:
        lines.append(f"  ... and {len(problems) - MAX_LISTED_PROBLEMS} more")
    lines.append(" ".join(remedies))
    raise AnnotationError("\n".join(lines))


def read_all(readers: Sequence[Callable[[Any], Any]], settings: Any) -> list[Any]:
    """What each reader of a dataset returns.

    Raises one AnnotationError with the messages of all readers that raised one.
    """
    read, errors = [], []
    for reader in readers:
        try:
            read.append(reader(settings))
        except AnnotationError as error:
            errors.append(str(error))
    if errors:
        raise AnnotationError("\n".join(errors))
    return read


def read_text(path: str | Path) -> tuple[str, list[str]]:
    """The text of an annotation file, and its problem: one at most, and with it no text.

    The file is UTF-8, with or without a byte order mark; line ends are left as they are.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return "", [f"no such file: {path}"]
    except OSError as error:
        return "", [f"{path} cannot be read: {error.strerror}"]
    for mark, encoding in OTHER_ENCODINGS.items():
        if content.startswith(mark):
            return "", [f"line 1 of {path}: {encoding}, not UTF-8; {_convert(path, encoding)}"]
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        where = f"line {_line_after(before.decode('latin-1'))} of {path}"
        return "", [f"{where}: not UTF-8 (byte 0x{byte:02x}); if it is Latin-1, {_convert(path, 'LATIN1')}"]
    if (position := text.find("\0")) >= 0:
        return "", [
            f"line {_line_after(text[:position])} of {path}: a NUL character; the file is half-written, or UTF-16: "
            "download it again or convert it"
        ]
    return (text, []) if text.strip() else ("", [f"{path} is empty"])


def read_lines(path: str | Path, around: str | None = None) -> tuple[list[tuple[int, str]], list[str]]:
    """The lines of a text file that are not blank, stripped and with their numbers from 1, and its problems.

    around: what is stripped; None for all that is blank.
    """
    text, problems = read_text(path)
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    return [(number, line.strip(around)) for number, line in lines if line.strip()], problems


def _convert(path: str | Path, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t UTF-8 {shlex.quote(str(path))} > NEW_FILE"


def _line_after(text: str) -> int:
    """The number, from 1, of the line that goes on where the text ends."""
    # Not str.splitlines, to which far more characters end a line.
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1


def read_json(path: str | Path, kind: type) -> tuple[Any, list[str]]:
    """What a JSON file holds, which must be a `kind` (list or dict) that is not empty, and its problem."""
    text, problems = read_text(path)
    if problems:
        return kind(), problems
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        return kind(), [f"line {error.lineno}, column {error.colno} of {path}: cannot be read as JSON: {error.msg}"]
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets in each other
        return kind(), [f"{path} cannot be read as JSON: {error}"]
    if not isinstance(content, kind) or not content:
        wanted = {list: "a list", dict: "an object"}[kind]
        return kind(), [f"{path} needs {wanted} that is not empty, found {content!s:.80}"]
    return content, []


def list_folder(folder: str | Path, name: str) -> tuple[list[os.DirEntry], list[str]]:
    """The entries of a folder in alphabetical order, and its problem: one at most, and with it no entries.

    name: what the folder is, for messages. Entries with a leading dot are left out: it marks what file managers leave
    behind ("._video0.mp4"), never a file of the dataset.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name), []
    except OSError as error:
        return [], [folder_problem(folder, name, error)]


def folder_problem(folder: str | Path, name: str, error: OSError) -> str:
    """Why a folder cannot be listed; name: what it is."""
    reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
    return f"the {name} {folder} {reason}"


def show(text: str) -> str:
    """A name for a message: as it is, or where that would be long or not to be seen, quoted and cut."""
    return text if text.isprintable() and len(text) <= 80 else f"{text!r:.80}"


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen."""
    return BLANK.fullmatch(text) is not None


def caption_problem(text: str) -> str | None:
    """What is wrong with a caption, None for nothing."""
    if is_blank(text):
        return "empty caption"
    if (words := len(text.split())) > MAX_CAPTION_WORDS:
        return f"a caption of {words:,} words; probably a quotation mark that is never closed"
    if UNUSABLE.search(text):
        return f"a caption with characters that are no text: {text!r:.80}"
    return None
