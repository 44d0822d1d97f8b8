"""Which folder may know of which: what is below knows nothing of what stands on it, and nothing goes in a circle."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "pyproject.toml").is_file())
TOPS = ("common", "dataloaders", "modules", "preprocess", "scripts", "search")
DIVIDED = ("dataloaders", "modules")  # their subfolders count for themselves
PROGRAMS = "main programs"
FRAMEWORKS = {"torch", "torchvision", "open_clip"}


def sources(root: Path) -> Iterator[Path]:
    """The Python files of the project, without its tests."""
    yield from root.glob("*.py")
    for top in TOPS:
        yield from root.glob(f"{top}/**/*.py")


def imported_by(path: Path, root: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it, also those that it imports by a text.

    Of `from a.b import c` that is `a.b.c`, be c a module or not.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(root).parent.parts
    names, texts = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join((*above, *([node.module] if node.module else [])))
            names |= {f"{start}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.add(node.value)
    if any(name.split(".")[0] == "importlib" for name in names):
        names |= {text for text in texts if "." in text and all(part.isidentifier() for part in text.split("."))}
    return names


def folder_of(name: str, root: Path) -> str | None:
    """The folder that a dotted name lies in; None where it is nothing of the project's."""
    top, *rest = name.split(".")
    if top in TOPS:
        return f"{top}.{rest[0]}" if top in DIVIDED and rest and (root / top / rest[0]).is_dir() else top
    return PROGRAMS if (root / f"{top}.py").is_file() else None


def folders_imported(root: Path = ROOT) -> dict[str, set[str]]:
    """For each folder of the project, the others that its files import something of.

    Folders are those at the top and, of `DIVIDED` ones, also those directly below, as dotted names; `dataloaders` alone
    stands for the files that lie in it themselves, and `PROGRAMS` for those at the top.
    """
    graph: dict[str, set[str]] = {}
    for path in sources(root):
        folder = folder_of(".".join(path.relative_to(root).with_suffix("").parts), root)
        found = {folder_of(name, root) for name in imported_by(path, root)}
        graph.setdefault(folder, set()).update(found - {folder, None})
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Folders of which each imports the next and the last is the first; none where there is no such circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def imported_within(top: str) -> set[str]:
    """What the folders in and below one at the top import of others at the top."""
    graph = folders_imported()
    return {name.split(".")[0] for folder, names in graph.items() if folder.split(".")[0] == top for name in names}


def test_common_imports_nothing_of_the_project_and_no_framework():
    assert folders_imported()["common"] == set()
    names = {name.split(".")[0] for path in (ROOT / "common").rglob("*.py") for name in imported_by(path, ROOT)}
    assert "argparse" in names and not names & FRAMEWORKS


def test_dataloaders_know_of_no_model_and_no_program():
    assert imported_within("dataloaders") - {"dataloaders"} == {"common"}


def test_modules_know_of_no_program_and_of_nothing_that_prepares_videos():
    assert imported_within("modules") - {"modules"} <= {"common", "dataloaders"}


def test_no_folders_import_each_other_in_a_circle():
    assert find_circle(folders_imported()) == []


def write(root, **files):
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    "line",
    [
        "import modules.b.y",
        "from modules import b",
        "from modules.b import y",
        "from ..b.y import z",
        "from .. import b",
        "def later():\n    from modules.b.y import z",
        "from importlib import import_module\nNAMES = {'y': 'modules.b.y'}\nimport_module(NAMES['y'])",
    ],
)
def test_an_import_is_found_however_it_is_written(tmp_path, line):
    write(tmp_path, modules__a__x=line, modules__b__y="from common.c import d\nimport main\n", main="import numpy")
    graph = folders_imported(tmp_path)
    assert graph == {"modules.a": {"modules.b"}, "modules.b": {"common", PROGRAMS}, PROGRAMS: set()}
    assert find_circle(graph) == []


def test_a_circle_is_found(tmp_path):
    write(
        tmp_path,
        dataloaders__items="from dataloaders.video.decoding import read",
        dataloaders__video__decoding="from modules.model.m import M",
        modules__model__m="from dataloaders import items",
    )
    circle = find_circle(folders_imported(tmp_path))
    assert circle[0] == circle[-1] and set(circle) == {"dataloaders", "dataloaders.video", "modules.model"}
    following = dict(pairwise(circle))
    assert following["dataloaders"] == "dataloaders.video"


# each imports of those before it alone
STACK = (
    {"common", "modules.kernels"},
    {"dataloaders.video", "modules.report"},
    {"dataloaders"},
    {"dataloaders.datasets", "modules.clip"},
    {"modules.model", "modules.runtime"},
    {"modules.methods", "modules.tasks"},
    {"modules.training"},
    {"modules.program"},
    {"preprocess", "main programs"},
    {"search"},
    {"scripts"},
)


def test_folders_stand_on_those_below_them():
    graph, below = folders_imported(), {"modules"}  # whose own __init__.py imports nothing
    for level in STACK:
        for folder in level:
            assert graph[folder] <= below, f"{folder} imports {graph[folder] - below}"
        below |= level
    assert {folder for folder in graph if not folder.startswith("tests")} <= below
