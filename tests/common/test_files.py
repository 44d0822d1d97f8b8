"""Files that programs write: tables that are read back as they were."""

import csv
import io

from common.files import csv_text


def test_a_table_is_read_back_as_it_was():
    rows = [["id", "name"], ["1", "a\rb"], ["2", 'say "no"\n,'], ["3", "c\r\nd\r\n"], ["4", ""]]
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
    assert csv_text(rows[:1]) == "id,name\n"
