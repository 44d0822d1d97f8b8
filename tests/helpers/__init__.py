"""What the tests of several files share: inputs, faults, ways to start the programs, ways to read what runs leave."""

import pytest

# their assertions are said as those of the tests are
pytest.register_assert_rewrite("helpers.launching", "helpers.runs", "helpers.flags")
