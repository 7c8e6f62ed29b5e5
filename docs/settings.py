"""The pages of settings, made from the files in conf/ and their comments. Run: make docs"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml

from cookbook.settings.ranges import RANGES

ROOT = Path(__file__).resolve().parent.parent
GROUPS = {  # folder of conf/ -> what its files are about
    "recipe": "recipes",
    "data": "datasets",
    "cluster": "places",
    "scale": "scales",
    "tracking": "trackers",
    "infra": "machines",
}
NOT_SETTINGS = ("defaults", "driver", "hydra", "kind", "builder", "scales")  # keys of conf/ that no user sets
UNITS = {  # ending of a key's name -> unit
    "seconds": "seconds",
    "minutes": "minutes",
    "hours": "hours",
    "ms": "milliseconds",
    "mb": "MB",
    "gb": "GB",
    "bytes": "bytes",
    "usd": "US dollars",
    "share": "a share from 0 to 1",
    "fraction": "a share from 0 to 1",
}
OVERVIEW = """\
# Settings

This page and those below it are made from the files in `conf/`. You set a value on the command line:

    make recipe-horovod ARGS="recipe.num_epochs=3 cluster.num_workers=4 data=images"

`group=choice` chooses a file of a group. `group.key=value` changes one key. The groups:

{links}
## Of every run

{general}"""


@dataclass(frozen=True)
class Setting:
    """One key that a user can set."""

    key: str  # as it is typed: recipe.num_epochs
    default: str  # as it stands in the file
    meaning: str  # the comment behind it
    section: str = ""  # the comment that stands alone above its part of the file

    @property
    def unit(self) -> str:
        """The unit that the key's name ends with, unless the meaning names one; empty where there is none."""
        name = self.key.rpartition(".")[2]
        found = (u for ending, u in UNITS.items() if f"_{name}".endswith(f"_{ending}") or f"_{ending}_per_" in name)
        return "" if re.search(r"\b[GM]i?B\b", self.meaning) else next(found, "")

    @property
    def range(self) -> str:
        """What a number may be, as the check of the settings has it; empty where nothing bounds it."""
        low, high = RANGES.get(self.key.rpartition(".")[2], (None, None))
        if high is None or self.key.startswith("infra.") or "share from" in self.unit:
            return ""
        return f"up to {high:,}" if low is None else f"{low:,} to {high:,}"


def pages() -> dict[str, str]:
    """{page: Markdown} of all that can be set."""
    links = "".join(f"- [Settings of the {title}]({group}.md)\n" for group, title in GROUPS.items())
    general = definitions(settings_of(ROOT / "conf/config.yaml", ""))
    made = {"settings/index.md": OVERVIEW.format(links=links, general=general)}
    for group, title in GROUPS.items():
        parts = [about(path) for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]
        made[f"settings/{group}.md"] = "\n".join([f"# Settings of the {title}\n", *parts])
    return made


def about(path: Path) -> str:
    """The part of a group's page that is about one file."""
    group, name, text = path.parent.name, path.stem, path.read_text()
    content = yaml.safe_load(text) or {}
    description = text.partition("\n")[0].removeprefix("#").strip()
    parts = [f"## {name}\n", f"`{group}={name}`. {sentence(description)}\n"]
    # `mlflow@mlflow` puts the settings of another file below a name of this one.
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and "@" not in entry]
    base = [entry for entry in entries if entry != "_self_"]
    if base:
        parts.append(f"What is not named here is as in `{group}={base[0]}`.\n")
    if group == "infra":
        parts.append("A variable that is `null` has the default of the target's `variables.tf`.\n")
    if group == "recipe":
        parts += [f"[The recipe's page](../recipes/{name}.md)\n", *about_recipe(content), ""]
    if group == "data" and "scales" in content:
        parts += [*what_choices_bring("scale", content["scales"]), ""]
    return "\n".join([*parts, definitions(settings_of(path, f"{group}."))])


def about_recipe(content: dict) -> Iterator[str]:
    """What a recipe's file says to the driver, as list items: its dataset, its needs, what its modes change."""
    driver = content["driver"]
    (data,) = (value for entry in content["defaults"] if isinstance(entry, dict) for value in entry.values())
    yield f"- Dataset, unless you choose another: `data={data}`."
    needs = driver["needs"]
    size = f"{needs['disk_mb']:,} MB of disk and {needs['memory_mb']:,} MB of memory"
    yield f"- Needs {size} (measured: two workers, `scale=smoke`)."
    if driver["tools"]:
        yield f"- Needs from the machine: {', '.join(driver['tools'])}."
    if driver.get("proof"):
        yield f"- Rules of evidence: {code_list(driver['proof'])}."
    yield from what_choices_bring("recipe.mode", driver.get("modes", {}))
    yield from what_choices_bring("scale", driver.get("scales", {}))


def what_choices_bring(key: str, choices: dict) -> Iterator[str]:
    """List items: what each choice of a setting changes."""
    for name, brings in choices.items():
        overrides = [f"{other}={plain(value)}" for other, value in brings.get("overrides", {}).items()]
        said = [f"changes the defaults to {code_list(overrides)}"] if overrides else []
        said += [f"is judged by {code_list(brings['proof'])}"] if brings.get("proof") else []
        if said:
            yield f"- `{key}={name}` {' and '.join(said)}."


def code_list(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def plain(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?", ")")) else f"{text}."


def settings_of(path: Path, prefix: str) -> list[Setting]:
    """All settings of a file, in its order. The comment behind a key is its meaning."""
    text = path.read_text()
    root = yaml.compose(text)
    described = terraform_descriptions(path.stem) if path.parent.name == "infra" else {}
    return list(walk(root, text, prefix, described)) if root else []


def walk(node: yaml.MappingNode, text: str, prefix: str, described: dict[str, str]) -> Iterator[Setting]:
    lines, section = text.splitlines(), ""
    is_top = node.start_mark.column == 0
    for key, value in node.value:
        if is_top and key.value in NOT_SETTINGS:
            continue
        if is_top:
            section = section_above(lines, key.start_mark.line) or section
        is_block = isinstance(value, yaml.MappingNode) and not value.flow_style
        meaning = comment_behind(lines, (key if is_block else value).end_mark)
        if is_block and (not meaning or any(comment_behind(lines, child.end_mark) for _, child in value.value)):
            yield from walk(value, text, f"{prefix}{key.value}.", described)
            continue
        default = "listed in the file" if is_block else text[value.start_mark.index : value.end_mark.index]
        if default != f"${{data.{key.value}}}":  # else it only hands a key above it on to the builder
            meaning = meaning or (described.get(key.value, "") if prefix.endswith("variables.") else "")
            yield Setting(f"{prefix}{key.value}", default, meaning, section)


def comment_behind(lines: list[str], mark: yaml.Mark) -> str:
    behind = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
    match = re.search(r"(?:^|\s)#\s?(.*)$", behind)
    if not match:
        return ""
    parts = [match[1].strip()]
    for line in lines[mark.line + 1 :]:
        more = re.fullmatch(r" {12,}# (.+)", line)
        if not more:
            break
        parts.append(more[1].strip())
    return " ".join(filter(None, parts))


def section_above(lines: list[str], line: int) -> str:
    """The comment above a key, where a blank line parts it from what is before."""
    above: list[str] = []
    while line > 0 and lines[line - 1].startswith("#"):
        line -= 1
        above.insert(0, lines[line].removeprefix("#").strip())
    return " ".join(above) if above and line > 0 and not lines[line - 1].strip() else ""


def terraform_descriptions(target: str) -> dict[str, str]:
    """Variable -> its description, of a target of infra/."""
    text = (ROOT / "infra" / target / "variables.tf").read_text()
    return dict(re.findall(r'^variable "(\w+)" \{\s*\n\s*description\s*=\s*"((?:[^"\\]|\\.)*)"', text, re.MULTILINE))


def definitions(settings: list[Setting]) -> str:
    """A list of definitions in HTML: key, default, unit and range on a line, the meaning below it."""
    html, section = [], ""
    for setting in settings:
        if setting.section != section:
            section = setting.section
            html.append(f"</dl>\n\n**{sentence(section)}**\n\n<dl class='settings'>")
        default = re.sub(r"^\$\{(\w+\.\w+)\}$", r"as \1", setting.default)
        kind = ", ".join(filter(None, [setting.unit, setting.range]))
        unit = f" <span class='unit'>{kind}</span>" if kind else ""
        meaning = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(setting.meaning, quote=False))
        name = f"<code>{escape(setting.key)}</code> <span class='default'>{escape(default)}</span>"
        html.append(f"<dt>{name}{unit}</dt>\n<dd>{meaning}</dd>")
    whole = "\n".join(["<dl class='settings'>", *html, "</dl>", ""])
    return whole.replace("<dl class='settings'>\n</dl>\n", "")
