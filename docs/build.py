"""Builds the documentation's site into outputs/docs/site, and fails where a link leads nowhere. Run: make docs

The pages in docs/ are plain Markdown that also reads well where the repository is browsed. This program joins them with
pages that it makes from what is written elsewhere, so that nothing is written twice:

- a page for each recipe and each target of infra/, from its README;
- the settings, from conf/ and its comments (settings.py);
- the difference between a recipe's program and its twin in one process, below the recipe's README;
- a page for each source file that another page links to.
"""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from cookbook.bootstrap import uv_environment
from cookbook.tools import diff
from docs import settings

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "outputs/docs"
LINK = re.compile(r"(?<=\]\()[^()\s]+(?=\))")  # the address in [text](address)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")  # a span of code within a line
PICTURES = (".png", ".svg", ".gif", ".jpg")
LANGUAGES = {".py": "python", ".ipynb": "python", ".yaml": "yaml", ".yml": "yaml", ".tf": "terraform"}
ELSEWHERE = {  # files whose page has another name
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "images/README.md": "container-images.md",
    "conf": "settings/index.md",
}
SOURCE_PAGE = """\
---
search:
  exclude: true
hide: [navigation, toc]
---

# {file}

{fence}{language}
{text}
{fence}
"""


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    site = Site()
    site.write(OUT / "pages")
    config = yaml.safe_load((ROOT / "docs/mkdocs.yml").read_text()) | {"nav": site.nav()}
    (OUT / "mkdocs.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    # An environment of its own, which uv keeps in its cache: the driver's stays small.
    uv = [Path(sys.executable).with_name("uv"), "run", "--isolated", "--no-project", "--with-requirements"]
    generator = ["zensical", "build", "--strict", "--clean", "--config-file"]
    argv = [*uv, ROOT / "docs/requirements.txt", "--python", sys.executable, *generator, OUT / "mkdocs.yml"]
    done = subprocess.run(argv, env={**os.environ, **uv_environment()})
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"docs         {OUT / 'site/index.html'}")


class Site:
    """The pages of the site: a path in the site -> its Markdown, made from the files of the repository."""

    def __init__(self) -> None:
        self.pages: dict[str, str] = {}
        self.pictures: set[str] = set()  # files of the repository that are copied as they are
        self.sources: set[str] = set()  # files of the repository that a page links to
        for pattern in ("*.md", "docs/*.md", "images/*.md", "infra/*/README.md", "recipes/*/README.md"):
            for path in sorted(ROOT.glob(pattern)):
                file = path.relative_to(ROOT).as_posix()
                self.pages[page_of(file)] = self.rewritten(file)
        for path in ROOT.glob("recipes/*/README.md"):
            name = path.parent.name
            self.pages[f"recipes/{name}.md"] += f"\n[All settings of this recipe](../settings/recipe.md#{name})\n"
        for name in diff.recipes_with_twin():
            self.pages[f"recipes/{name}.md"] += difference_section(name)
        self.pages |= settings.pages()
        self.pages |= {page_of(file): source_page(file) for file in sorted(self.sources)}

    def rewritten(self, file: str) -> str:
        """The Markdown of a file, with each relative link turned to the page that shows its target."""
        lines, is_fenced = [], False
        for line in (ROOT / file).read_text().splitlines():
            is_fenced ^= line.lstrip().startswith("```")
            is_code = is_fenced or line.startswith("    ")
            lines.append(line if is_code else outside_code(line, lambda text: self.with_links(text, file)))
        return "\n".join(lines) + "\n"

    def with_links(self, text: str, file: str) -> str:
        return LINK.sub(lambda match: self.address(match[0], file), text)

    def address(self, link: str, file: str) -> str:
        """Where a link of a file leads in the site. Exits where it leads nowhere."""
        if re.match(r"[a-z]+:|#", link):
            return link
        path, hash_, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        if not (ROOT / target).exists():
            raise SystemExit(f"error: {file}: the link {link} leads nowhere")
        page = page_of(target)
        if page.startswith("source/"):
            self.sources.add(target)
        elif target.endswith(PICTURES):
            self.pictures.add(target)
        if page.startswith("settings/") and not anchor and Path(target).parent.name in settings.GROUPS:
            hash_, anchor = "#", Path(target).stem
        return posixpath.relpath(page, posixpath.dirname(page_of(file)) or ".") + hash_ + anchor

    def write(self, folder: Path) -> None:
        for page, text in self.pages.items():
            path = folder / page
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for picture in self.pictures:
            path = folder / page_of(picture)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / picture, path)
        shutil.copy(ROOT / "docs/style.css", folder / "style.css")

    def nav(self) -> list[dict[str, object]]:
        """The table of contents. Recipes, targets and groups of settings are found, not listed."""

        def below(folder: str) -> list[dict[str, str]]:
            return [{Path(page).stem: page} for page in sorted(self.pages) if page.startswith(f"{folder}/")]

        groups = [{title: f"settings/{group}.md"} for group, title in settings.GROUPS.items()]
        return [
            {"Home": "index.md"},
            {"Start": "start.md"},
            {"Which tool for my job": "guide.md"},
            {"How a run goes": "run.md"},
            {"When the machine is taken away": "preemption.md"},
            {"Evidence": "evidence.md"},
            {"A slow or hung run": "diagnose.md"},
            {"Chaos": "chaos.md"},
            {"Live metrics": "tracking.md"},
            {"Places": "places.md"},
            {"GPUs": "gpus.md"},
            {"Object storage": "storage.md"},
            {"Recipes": below("recipes")},
            {"Settings": ["settings/index.md", *groups]},
            {"Machines": ["infra.md", *below("infra"), {"container images": "container-images.md"}]},
            {"Adding": ["add-recipe.md", "add-system.md", "add-place.md"]},
            {"Tests": "tests.md"},
            {"What was run": "verified.md"},
            {"Terms": "terms.md"},
            {"Troubleshooting": "troubleshooting.md"},
            {"Contributing": "contributing.md"},
        ]


def page_of(file: str) -> str:
    """Where the site shows a file of the repository."""
    if file in ELSEWHERE:
        return ELSEWHERE[file]
    if file.endswith(PICTURES):
        return f"pictures/{file}"
    if match := re.fullmatch(r"(?:docs/([^/]+)|((?:recipes|infra)/[^/]+)/README)\.md", file):
        return f"{match[1] or match[2]}.md"
    if match := re.fullmatch(r"conf/(?:(\w+)/\w+|config)\.yaml", file):
        return f"settings/{match[1] or 'index'}.md"
    if not (ROOT / file).is_file():
        raise SystemExit(f"error: a link leads to the folder {file}, which has no page: link to a file in it")
    return f"source/{file}.md"


def outside_code(line: str, change: Callable[[str], str]) -> str:
    """The line with `change` applied to what is no code. Code is hidden meanwhile: it may be the text of a link."""
    hidden = [span[0] for span in CODE.finditer(line)]
    return re.sub("\0", lambda _: hidden.pop(0), change(CODE.sub("\0", line)))


def difference_section(recipe: str) -> str:
    """What makes the recipe's program a distributed one, as the end of its page."""
    difference = diff.difference_of(recipe)
    fence = fence_around(difference.text)
    return f"\n## single.py and main.py\n\n{difference.summary}\n\n{fence}diff\n{difference.text}\n{fence}\n"


def fence_around(text: str) -> str:
    """A fence for a block of code that the text cannot end."""
    return "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))


def source_page(file: str) -> str:
    """A page that shows a source file. The site's search leaves it out."""
    text = (ROOT / file).read_text()
    if file.endswith(".ipynb"):
        cells = json.loads(text)["cells"]
        text = "\n\n".join(f"# %% {cell['cell_type']}\n{''.join(cell['source'])}" for cell in cells)
    fence = fence_around(text)
    language = LANGUAGES.get(Path(file).suffix, "text")
    return SOURCE_PAGE.format(file=file, fence=fence, language=language, text=text.rstrip())


if __name__ == "__main__":
    main()
