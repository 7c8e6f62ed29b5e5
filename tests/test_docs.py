"""What people read: links lead somewhere, tables stay narrow, README stays short, the site shows what the files say."""

import itertools
import re
import subprocess
import time
from functools import cache
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt

from benchmarks import measure
from cookbook.evidence import COMMON
from cookbook.evidence.rules import RULES
from docs import build, settings
from tests.helpers import ROOT, recipes

LONGEST_ROW = 160  # characters; explanations are paragraphs below a table
README_WORDS = 1000
PAGES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True
).stdout.split() or sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "images", "infra/*", "recipes/*")
    for path in ROOT.glob(f"{folder}/*.md")
)  # a copy of the checkout has no git


@cache
def tokens_of(path):
    return MarkdownIt("commonmark").enable("table").parse(path.read_text())


@cache
def anchors_of(path):
    """The anchors of a page's headings, as they are made where repositories are browsed."""
    tokens, seen, anchors = tokens_of(path), {}, set()
    for heading, inline in itertools.pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(child.content for child in inline.children)
            slug = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
            number = seen.get(slug, 0)
            seen[slug] = number + 1
            anchors.add(f"{slug}-{number}" if number else slug)
    return anchors


def links_of(path):
    """The addresses of all links and pictures of a page; what is in code is no link."""
    inline = [child for token in tokens_of(path) for child in token.children or ()]
    return [
        str(child.attrs.get("href") or child.attrs.get("src"))
        for child in inline
        if child.type in ("link_open", "image")
    ]


def problem_with(path, link):
    """What is wrong with a link, or None."""
    if re.match(r"[a-z]+:", link):
        return None  # other people's pages are not asked from here
    file, _, anchor = unquote(link).partition("#")
    target = (path.parent / file).resolve() if file else path
    if not target.is_relative_to(ROOT) or not target.exists():
        return f"{link}: there is no such file"
    if anchor and (target.suffix != ".md" or anchor not in anchors_of(target)):
        return f"{link}: {target.name} has no heading with that anchor"
    return None


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    path = ROOT / page
    problems = [problem for link in links_of(path) if (problem := problem_with(path, link))]
    assert problems == []


@pytest.mark.parametrize(
    ("link", "said"),
    [
        ("missing.md", "no such file"),
        ("../../outside.md", "no such file"),
        ("README.md#nowhere", "no heading"),
        ("README.md#recipes", None),
        ("https://example.org/x", None),
        ("Makefile#recipes", "no heading"),
    ],
)
def test_a_link_that_leads_nowhere_is_found(link, said):
    problem = problem_with(ROOT / "README.md", link)
    assert (problem is None) if said is None else (said in problem)


def test_there_are_links_and_anchors_to_look_at():
    assert {"README.md", "CONTRIBUTING.md", "docs/start.md"} <= set(PAGES)
    links = [link for page in PAGES for link in links_of(ROOT / page)]
    assert len(links) > 150 and any("#" in link for link in links)


@pytest.mark.parametrize("page", PAGES)
def test_no_row_of_a_table_is_long(page):
    rows = [line for line in (ROOT / page).read_text().splitlines() if line.lstrip().startswith("|")]
    assert [f"{len(row)}: {row[:60]}" for row in rows if len(row) > LONGEST_ROW] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_text_is_long(page):
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(("|", "    ", "<"))]
    # A word, or a command in a sentence, cannot be divided.
    breakable = [line for line in lines if " " in re.sub(r"`[^`]*`|!?\[[^]]*\]\([^)]*\)", "x", line).strip()]
    assert [f"{len(line)}: {line[:60]}" for line in breakable if len(line) > 120] == []


BENCHMARKS = [path.stem for path in sorted(ROOT.glob("benchmarks/*.py")) if (ROOT / "recipes" / path.stem).is_dir()]


@pytest.mark.parametrize("recipe", BENCHMARKS)
def test_a_benchmark_writes_its_table_into_the_recipe_s_page(recipe, tmp_path, monkeypatch, capsys):
    page = tmp_path / "README.md"
    before = (ROOT / f"recipes/{recipe}/README.md").read_text()
    page.write_text(before)
    monkeypatch.setenv("TO", str(page))
    measure.print_table(recipe, "a machine", ["| speed | 3 rows/s | ours / bare = 0.99 |"], {})
    text = page.read_text()
    assert f"Machine: a machine, on {time.strftime('%Y')}" in text
    assert "| --- | --- | --- |\n| speed | 3 rows/s | ours / bare = 0.99 |\n" in text
    begin, end = text.index("<!-- bench"), text.index("<!-- end of bench")
    assert before.startswith(text[:begin]) and before.endswith(text[end:]) and "## Measured" in text[:begin]


def test_the_readme_is_short_and_names_every_recipe():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= README_WORDS, "what is longer belongs into docs/"
    linked = set(re.findall(r"\(recipes/(\w+)/README\.md\)", text))
    assert linked == set(recipes())


@pytest.mark.parametrize("rule", [*COMMON, *RULES])
def test_every_rule_of_evidence_is_explained(rule):
    assert f"`{rule}`" in (ROOT / "docs/evidence.md").read_text()


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_setting_has_a_meaning(path):
    found = settings.settings_of(path, "")
    assert [setting.key for setting in found if not setting.meaning] == []
    # Nothing that YAML itself finds is overlooked; `parameters` may only hand on the keys above it.
    top = set(yaml.safe_load(path.read_text()) or {}) - {*settings.NOT_SETTINGS, "parameters"}
    assert top <= {setting.key.partition(".")[0] for setting in found}


@pytest.mark.parametrize(
    ("file", "key", "default", "meaning", "section", "unit"),
    [
        ("recipe/pytorch", "recipe.num_epochs", "15", "passes over the training rows", "", ""),
        ("recipe/pytorch", "recipe.num_repeats", "7", "of each measurement; the median counts", "collectives", ""),
        (
            "cluster/local",
            "cluster.stop_grace_seconds",
            "5",
            "between SIGTERM and SIGKILL when a run is stopped",
            "",
            "seconds",
        ),
        ("data/cifar10", "data.parameters.md5", "listed in the file", "as torchvision publishes it", "", ""),
        ("infra/local", "infra.variables.num_hosts", "2", "hosts", "", ""),
    ],
)
def test_a_setting_has_default_meaning_section_and_unit(file, key, default, meaning, section, unit):
    path = ROOT / f"conf/{file}.yaml"
    (found,) = [one for one in settings.settings_of(path, f"{path.parent.name}.") if one.key == key]
    assert (found.default, found.meaning, found.section, found.unit) == (default, meaning, section, unit)


def test_a_setting_s_page_has_its_range():
    ranges = {one.key: one.range for one in settings.settings_of(ROOT / "conf/cluster/local.yaml", "cluster.")}
    assert (ranges["cluster.port"], ranges["cluster.num_workers"]) == ("1 to 65,535", "1 to 10,000")
    assert (ranges["cluster.storage"], ranges["cluster.inherit"]) == ("", "")


def test_the_worked_example_of_a_recipe_is_one():
    text = (ROOT / "docs/add-recipe.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(program, "main.py", "exec")
    assert program.count("# Distributed:") >= 5
    (example,) = (yaml.safe_load(found) for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    drivers = [yaml.safe_load((ROOT / f"conf/recipe/{name}.yaml").read_text())["driver"] for name in recipes()]
    assert set.intersection(*map(set, drivers)) <= set(example["driver"]) <= set().union(*drivers)
    assert set(re.findall(r"config\.(\w+)", program)) <= {*example, "output_dir"}


def test_links_are_turned_to_the_pages_of_the_site():
    site = build.Site()
    page = site.pages["recipes/horovod.md"]
    assert "[main.py](../source/recipes/horovod/main.py.md)" in page
    assert "source/recipes/horovod/main.py.md" in site.pages
    assert "(recipes/horovod.md)" in site.pages["index.md"]
    assert {f"recipes/{name}.md" for name in recipes()} <= set(site.pages)
    assert {f"infra/{path.parent.name}.md" for path in ROOT.glob("infra/*/README.md")} <= set(site.pages)
    assert re.findall(r"## (\w+)", site.pages["settings/recipe.md"]) == recipes()
    assert "+    hvd.init()" in page, "the difference from the twin in one process"


def test_ci_builds_the_site():
    for file in (".ci/run", ".github/workflows/ci.yml"):
        assert re.search(r"^(      - run: )?make docs$", (ROOT / file).read_text(), re.MULTILINE), file


@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/**/*.yaml")), ids=lambda path: path.stem)
def test_no_line_of_the_settings_is_long(path):
    assert [line for line in path.read_text().splitlines() if len(line) > 120] == []
