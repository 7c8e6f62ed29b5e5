"""Shows what makes a recipe's program a distributed one: the difference from single.py, its twin in one process.

Run: make diff RECIPE=horovod

The lines are compared without their indentation: a block that only moved to the right has not changed. The docstrings
at the programs' heads are left out: they speak about the programs. `diff -uw single.py main.py` shows nearly the same.
"""

import ast
import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cookbook import ROOT, UserError
from cookbook.programs import run_program
from cookbook.report.console import console

CONTEXT = 3  # equal lines that are shown around a difference
TAG = "# Distributed:"
STYLES = {"+": "green", "-": "red", "@": "cyan"}


@dataclass(frozen=True)
class Difference:
    """The two programs of a recipe, and what one has that the other lacks."""

    recipe: str
    single_lines: int
    main_lines: int
    added: int  # lines of main.py that single.py lacks; a changed line is one of them
    removed: int  # lines of single.py that main.py lacks
    tagged: int  # added lines that carry a tag, or stand below one
    text: str  # in the format of `diff -u`

    @property
    def summary(self) -> str:
        return (
            f"{self.recipe}: single.py has {self.single_lines} lines, main.py {self.main_lines}: {self.added} added or "
            f"changed, {self.removed} removed; {self.tagged} of the {self.added} carry or stand below `{TAG}`"
        )


def recipes_with_twin() -> list[str]:
    """Names of the recipes that have a single.py beside their main.py."""
    return sorted(path.parent.name for path in ROOT.glob("recipes/*/single.py") if path.with_name("main.py").exists())


def difference_of(recipe: str) -> Difference:
    """Compares the recipe's programs. Raises UserError, with the names that exist, where there is no twin."""
    names = recipes_with_twin()
    if recipe not in names:
        said = f"RECIPE={recipe} has no single.py to compare with" if recipe else "RECIPE is missing"
        raise UserError(f"{said}; these recipes have one: {', '.join(names)}. Try: make diff RECIPE={names[0]}")
    texts = [(ROOT / "recipes" / recipe / name).read_text() for name in ("single.py", "main.py")]
    (single, single_head), (main, main_head) = ((text.splitlines(), head_of(text)) for text in texts)
    old, new = single[single_head:], main[main_head:]
    # autojunk: it takes a line that stands often (a blank one) for no line at all.
    bodies = ([line.strip() for line in old], [line.strip() for line in new])
    matcher = difflib.SequenceMatcher(None, *bodies, autojunk=False)
    lines = [f"--- recipes/{recipe}/single.py", f"+++ recipes/{recipe}/main.py"]
    for group in matcher.get_grouped_opcodes(CONTEXT):
        first, last = group[0], group[-1]
        places = (single_head + first[1] + 1, last[2] - first[1], main_head + first[3] + 1, last[4] - first[3])
        lines.append("@@ -{},{} +{},{} @@".format(*places))
        for kind, begin, end, main_begin, main_end in group:
            if kind == "equal":
                lines += [f" {line}" for line in new[main_begin:main_end]]
            else:
                lines += [f"-{line}" for line in old[begin:end]] + [f"+{line}" for line in new[main_begin:main_end]]
    changed = [place for place in matcher.get_opcodes() if place[0] != "equal"]
    added = [number for _, _, _, begin, end in changed for number in range(main_head + begin, main_head + end)]
    return Difference(
        recipe=recipe,
        single_lines=len(single),
        main_lines=len(main),
        added=len(added),
        removed=sum(end - begin for _, begin, end, _, _ in changed),
        tagged=len(set(added) & set(below_tags(main))),
        text="\n".join(lines),
    )


def head_of(source: str) -> int:
    """How many lines the docstring at a program's head takes; 0 without one."""
    first = ast.parse(source).body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return first.end_lineno or 0 if is_docstring else 0


def below_tags(lines: Sequence[str]) -> Iterator[int]:
    """Indices of the lines that a tag speaks of.

    A tag behind code speaks of its line. A tag that stands alone speaks of what follows at its indentation or deeper,
    up to the next blank line or the next comment without a tag.
    """
    indentation: int | None = None  # of the tag that speaks now
    comment = False  # whether the line before is a line of a tag's comment
    for number, line in enumerate(lines):
        text = line.lstrip()
        indent = len(line) - len(text)
        if text.startswith(TAG):
            indentation, comment = indent, True
        elif text.startswith("#") and comment:
            pass  # the tag's next line
        elif not text or text.startswith("#") or (indentation is not None and indent < indentation):
            indentation, comment = None, False
        else:
            comment = False
        if indentation is not None or TAG in line:
            yield number


def main(argv: Sequence[str]) -> None:
    difference = difference_of(argv[0] if argv else "")
    console.print(difference.summary, markup=False)
    for line in difference.text.splitlines():
        console.print(line, style=STYLES.get(line[:1]), markup=False)


if __name__ == "__main__":
    run_program(main)
