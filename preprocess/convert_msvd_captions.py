"""Write MSVD's captions as JSON, once.

    python preprocess/convert_msvd_captions.py --input raw-captions.pkl --output raw-captions.json

`raw-captions.pkl` is a pickle, a kind of file that can be made to run code when it is opened. It is read here as the
training program reads it, by an unpickler that builds dictionaries, lists and texts and refuses everything else. The
JSON file is an object from id to captions, each a list of words as in the pickle; --data_path of --datatype msvd takes
either. Words stay as they are, and so does the order of videos and captions.

Exit code: 0 the file is written, 1 the pickle is refused or a file cannot be read or written; nothing is written then.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.errors import UserError
from common.files import write_whole
from dataloaders.annotations import raise_if_problems
from dataloaders.datasets.retrieval.msvd import read_words


def convert(source: Path, target: Path) -> int:
    """Write the captions of a pickle as JSON, and return how many videos they are of.

    Raises:
        UserError: the target is not named as JSON or cannot be written; as AnnotationError, listing what is wrong with
            the pickle.
    """
    if target.suffix.lower() != ".json":
        raise UserError(f"--output {target} needs a name that ends in .json, by which it is told from a pickle")
    words, problems = read_words(source)
    raise_if_problems(f"MSVD captions {source}", problems, "Check that --input is raw-captions.pkl, and whole.")
    text = json.dumps(words, ensure_ascii=False) + "\n"
    try:
        write_whole(target, lambda file: file.write(text.encode("utf-8")))
    except (OSError, UnicodeEncodeError) as error:
        raise UserError(f"--output {target} cannot be written: {error}") from error
    return len(words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="raw-captions.pkl")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(argv)
    try:
        count = convert(args.input, args.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"the captions of {count:,} videos are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
