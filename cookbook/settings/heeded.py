"""Which of a recipe's settings its chosen program reads: another one would be taken and do nothing.

The programs are read, not run: the program of the mode, and of each module of the recipe only what that program uses,
function by function. What is read to check the settings does not count.
"""

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from cookbook import ROOT
from cookbook.job import Job, Settings
from cookbook.settings.files import CONF

CHECK = "check_settings"  # the function of a recipe's settings.py that refuses what makes no sense


def unheeded(recipe: str, config: Settings, overrides: Sequence[str]) -> list[str]:
    """A sentence for each override of a recipe's setting that nothing reads in the chosen mode.

    `overrides`: key=value, as they were typed.
    """
    typed = dict(word.lstrip("+").split("=", 1) for word in overrides if "=" in word)
    names = {key.split(".")[1]: f"{key}={value}" for key, value in typed.items() if key.startswith("recipe.")}
    if not names.keys() - {"mode", "driver"}:
        return []
    mode = f" recipe.mode={config['recipe']['mode']}" if "mode" in config["recipe"] else ""
    folder = ROOT / "recipes" / recipe
    read = names_read(Job(config, folder, Path(), Path()).program)
    system = ROOT / f"cookbook/systems/{config['recipe']['driver']['system']}.py"
    read |= names_in(ast.parse(system.read_text()))
    # A setting that another one of the file points at.
    read |= set(re.findall(r"\$\{recipe\.(\w+)\}", (CONF / f"recipe/{recipe}.yaml").read_text()))
    return [
        f"{word}: with recipe={recipe}{mode} nothing reads this setting"
        for name, word in names.items()
        if name not in read | {"mode", "driver"}
    ]


def names_read(program: Path) -> set[str]:
    """Every name and every text in a program, and in what it uses of the modules beside it."""
    found: set[str] = set()
    todo, done = [(program.stem, "")], set()
    while todo:
        module, name = todo.pop()
        if (module, name) in done or name == CHECK:
            continue
        done.add((module, name))
        tree, tops, imported = parsed(program.with_name(f"{module}.py"))
        used = names_in(tops.get(name, tree))
        found |= used
        todo += [imported[one] for one in used & imported.keys()]
        todo += [(module, one) for one in used & tops.keys() if name]
    return found


@cache
def parsed(path: Path) -> tuple[ast.Module, dict[str, ast.AST], dict[str, tuple[str, str]]]:
    """(the module, its definitions, its imports from modules beside it)."""
    tree = ast.parse(path.read_text())
    return tree, definitions(tree), dict(imports(tree, path.parent))


def definitions(tree: ast.Module) -> dict[str, ast.AST]:
    """{name: where it is defined} of a module's functions, classes and variables."""
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
    return found


def imports(tree: ast.Module, folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """(name here, (module, name there; empty: all of it)) of what comes from modules in the folder."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and (folder / f"{node.module}.py").exists():
            yield from ((one.asname or one.name, (node.module, one.name)) for one in node.names)
        elif isinstance(node, ast.Import):
            local = [one for one in node.names if (folder / f"{one.name}.py").exists()]
            yield from ((one.asname or one.name, (one.name, "")) for one in local)


def names_in(tree: ast.AST) -> set[str]:
    """The names, attributes, keywords and texts in a part of a program; comments and docstrings say nothing."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found
