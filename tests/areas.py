"""Areas of the suite: a test file is one; what all recipes are held to belongs to their areas. Run: make areas"""

from pathlib import Path

# One after the other: they make network namespaces and images, and look at what is left of them.
NETWORK = ("chaos", "hosts", "images", "infra", "kubernetes", "slurm")
# Their tests belong to the area of the recipe that they look at: one run serves all of them.
OF_ALL_RECIPES = ("test_contracts", "test_results")
FOLDER = Path(__file__).parent


def area_of(item) -> str:
    """The area of a collected test."""
    recipe = getattr(item, "callspec", None) and item.callspec.params.get("recipe")
    if recipe and item.path.stem in OF_ALL_RECIPES:
        return recipe
    return item.path.stem.removeprefix("test_")


def group_of(nodeid: str) -> str:
    """What a test, by its id, must share a process with: all that make networks are one group,
    any other test is its own."""
    area = Path(nodeid.partition("::")[0]).stem.removeprefix("test_")
    return "network" if area in NETWORK else nodeid


def areas() -> list[str]:
    """Names of all areas, from the files."""
    found = sorted(path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py"))
    assert found, "no test file was found"
    return found


if __name__ == "__main__":
    print("\n".join(areas()))
