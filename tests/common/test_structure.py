"""A reader finds the way in the repository: folders are small, and every test file stands on its own."""

import ast
from collections import Counter
from pathlib import Path

from helpers.paths import ROOT
from helpers.suite import LONG_FILES

MAX_FILES = 12  # Python files in a folder
LEFT_BY_RUNS = {"runs", "data", "ckpts"}
TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
NOT_SHARED = {"conftest", *(path.stem for path in TEST_FILES)}


def folders_in(root: Path) -> list[Path]:
    """A folder and all below it but links, hidden ones and environments."""
    inner = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    kept = [path for path in inner if path.name[0] != "." and not (path / "pyvenv.cfg").exists()]
    return [root, *(folder for path in kept for folder in folders_in(path))]


def crowded(root: Path) -> dict[str, int]:
    """The folders of a repository with more Python files than are seen at once, and how many they have."""
    counts = {folder.relative_to(root): len(list(folder.glob("*.py"))) for folder in folders_in(root)}
    own = {folder: count for folder, count in counts.items() if not set(folder.parts[:1]) & LEFT_BY_RUNS}
    return {folder.as_posix(): count for folder, count in own.items() if count > MAX_FILES}


def imported_by(source: str) -> set[str]:
    """The modules, and what of them, that a source file imports anywhere in it, by their full names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def imported_tests(source: str) -> set[str]:
    """What a source file imports of test files and of conftest.py."""
    return {name for name in imported_by(source) if NOT_SHARED & set(name.split("."))}


def test_no_folder_has_more_python_files_than_are_seen_at_once():
    assert crowded(ROOT) == {}


def test_a_crowded_folder_is_found_at_any_depth(tmp_path):
    for folder, count in (("a/b", 13), ("a", 12), ("runs/a", 13), (".venv/a", 13), ("a/.hidden", 13)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (tmp_path / folder / f"{number}.py").touch()
    assert crowded(tmp_path) == {"a/b": 13}


def test_no_test_file_imports_another():
    found = {path.name: imported_tests(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py")}
    assert {name: imports for name, imports in found.items() if imports} == {}


def test_an_import_of_a_test_file_is_found_in_any_form():
    for source in (
        "from test_video import KINDS",
        "def late():\n    import test_video",
        "import tests.dataloaders.video.test_video as video",
        "from tests.dataloaders.video import test_video",
        "from conftest import tiny_run",
    ):
        assert imported_tests(source), source
    assert imported_tests("from helpers.videos import damage\nimport torch.testing\n") == set()


def test_no_two_test_files_have_one_name():
    """Test folders are no packages: pytest imports a file by its name alone."""
    assert [name for name, count in Counter(path.name for path in TEST_FILES).items() if count > 1] == []
    assert list((ROOT / "tests").rglob("__init__.py")) == [ROOT / "tests" / "helpers" / "__init__.py"]


def test_the_files_that_begin_are_there():
    assert set(LONG_FILES) <= {path.name for path in TEST_FILES}
