"""What the documentation points at exists: files, sections, flags."""

import dataclasses
import json
import re
from collections import Counter

import pytest

from dataloaders.datasets import RECOGNITION, RETRIEVAL
from helpers.flags import DATASETS, PROGRAMS
from helpers.methods import COUNTS
from helpers.paths import ROOT
from modules.methods import METHODS
from modules.program.arguments import CommonSettings
from modules.training.trainer import TrainSettings
from scripts.demo_table import COLUMNS
from scripts.docs_tables import MARKED, TABLES, filled

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LAUNCHER = {"--nproc_per_node", "--standalone", "--nnodes", "--rdzv_backend", "--rdzv_endpoint", "--processes"}


def flags_of(program):
    """The flags that a program of this project takes, whatever the method and the dataset."""
    if program.stem.startswith("main_task_"):
        task = program.stem.removeprefix("main_task_")
        own = [dataset.settings for dataset in {"retrieval": RETRIEVAL, "recognition": RECOGNITION}[task].values()]
        classes = [CommonSettings, TrainSettings, PROGRAMS[task][1], *own, *(m.settings for m in METHODS.values())]
        flags = {f"--{field.name}" for settings in classes for field in dataclasses.fields(settings)}
        return flags | {"--method", "--datatype", "--help"} | LAUNCHER
    if program.name == "search.sh":
        return flags_of(ROOT / "search" / "__main__.py")
    if program.suffix == ".sh":  # its flags are those of what it runs
        named = re.findall(r"(?:main_task_\w+|(?:preprocess|scripts|tests/soak)/[\w/]+)\.py", program.read_text())
        return {flag for name in set(named) for flag in flags_of(ROOT / name)}
    source = program.read_text()
    if program.parts[-2:] == ("search", "__main__.py"):  # whose settings have a file of their own
        source += program.with_name("settings.py").read_text()
    flags = set(re.findall(r"add_argument\(\s*\"(--[\w-]+)\"", source))
    names = set(re.findall(r"^    (\w+): [^=\n]*= setting\(", source, re.MULTILINE))
    datasets = {field.name for dataset in DATASETS for field in dataclasses.fields(dataset.settings)}
    return flags | {f"--{name}" for name in names | (datasets if "setting(" in source else set())} | {"--help"}


def commands(page):
    """The commands in a page's code blocks, those over several lines joined."""
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield re.sub(r"(^|\s)#.*", "", line)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def anchors(page):
    """What links to the headings of a page end with, as GitHub makes it of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = Counter()
    for heading in re.findall(r"^#{1,6} +(.+)$", text, re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()  # of links the text
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        yield f"{slug}-{found[slug]}" if found[slug] else slug
        found[slug] += 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("target", ["none.md", "none.md#a", "other.md#first", "#a-heading-2", "#in-code"])
def test_a_link_that_leads_nowhere_is_found(tmp_path, target):
    (tmp_path / "other.md").write_text("# The *first* [heading](x.md), `--of_it` – ε\n")
    page = tmp_path / "page.md"
    page.write_text("## A heading\n\n## A heading\n\n```bash\n# In code\n```\n")
    assert list(anchors(page)) == ["a-heading", "a-heading-1"]
    good = "[a](other.md#the-first-heading---of_it--ε) [b](#a-heading-1) [c](other.md)\n"
    page.write_text(page.read_text() + good)
    test_links_lead_somewhere(page)
    page.write_text(page.read_text() + f"[d]({target})\n")
    with pytest.raises(AssertionError, match=target):
        test_links_lead_somewhere(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    folders = "common|modules|dataloaders|preprocess|scripts|search|docs|tests"
    named = re.findall(rf"`((?:{folders})/[\w/.]+\.\w+)`", page.read_text())
    for name in named:
        assert "NAME" in name or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_commands_exist(page):
    for command in commands(page):
        programs = re.findall(r"(?:main_task_\w+\.py|(?:preprocess|scripts)/[\w/]+\.(?:py|sh))", command)
        if not programs:
            continue
        known = {flag for name in programs for flag in flags_of(ROOT / name)}
        for flag in re.findall(r"(?<=\s)--[A-Za-z_]\w*", command):
            assert flag in known or flag.replace("--no_", "--") in known, f"{flag} in {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_tables_exist(page):
    known = set().union(*(flags_of(ROOT / f"main_task_{task}.py") for task in PROGRAMS))
    for row in re.findall(r"^\| (`--[^|]*) \|", page.read_text(), re.MULTILINE):
        for flag in re.findall(r"`(--\w+)", row):
            assert flag in known, flag


def test_a_flag_that_does_not_exist_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```bash\npython main_task_retrieval.py --do_eval --no_such \\\n  --nor_this\n```\n")
    with pytest.raises(AssertionError, match="--no_such"):
        test_flags_in_commands_exist(page)


def test_the_tables_are_what_was_measured():
    pages = {page.name: page.read_text() for page in PAGES}
    assert {name: filled(page) for name, page in pages.items()} == pages
    placed = [match["name"] for page in pages.values() for match in MARKED.finditer(page)]
    assert sorted(placed) == sorted(TABLES)
    assert sum(page.count("<!-- table:") for page in pages.values()) == len(placed)  # each with its end


def test_under_bf16_the_gradient_is_that_of_fp32_where_the_choices_are():
    rows = json.loads((ROOT / "docs" / "results" / "precision.json").read_text())["rows"]
    medians = [row["median"] for row in rows if (row["precision"], row["choices"]) == ("bf16", "fixed")]
    assert len(medians) == 2 and min(medians) >= 0.99


def test_the_readmes_demo_is_what_was_measured():
    readme = (ROOT / "README.md").read_text()
    measured = {
        task: json.loads((ROOT / "docs" / "results" / f"demo_{task}.json").read_text())
        for task in ("retrieval", "recognition")
    }
    for name, run in measured["retrieval"].items():
        cells = [f"{run['results'][key]:.1f}" for _, key in COLUMNS["retrieval"]]
        assert f"| {name} | {' | '.join(cells)} | {run['results']['trainable_parameters']:,} |" in readme
    zero_shot, stop, shuffled = (f"{run['results']['top1']:.1f}" for run in measured["recognition"].values())
    assert f"top-1 {zero_shot} for zero-shot, {stop} for STOP, {shuffled} with shuffled frames" in readme


def test_the_table_of_methods_is_what_they_say():
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    trained = {method: count for method, _, count in reversed(COUNTS)}  # the first of a method is its defaults'
    for name, method in METHODS.items():
        said = method.properties
        still, length = ("yes" if said.still else ""), ("yes" if said.any_length else "refused")
        assert f"| `{name}` | {trained[name]:,} | {still} | {length} | {'' if said.order_blind else 'yes'} |" in page
        assert f"{trained[name]:,}" in (ROOT / "README.md").read_text(encoding="utf-8")
