"""Recipes that come with the package: files of options that ``--config`` finds by name, such as imagenet/e150_b512."""

import re
from collections.abc import Sequence
from pathlib import Path

from dicenet.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "configs"
_SUFFIX = ".yaml"
_NAME = re.compile(r"[\w./-]+")


def recipes() -> dict[str, Path]:
    """The shipped recipes: name (such as imagenet/e150_b512) to file, sorted."""
    files = sorted(FOLDER.rglob(f"*{_SUFFIX}"))
    return {file.relative_to(FOLDER).as_posix().removesuffix(_SUFFIX): file for file in files}


def find_recipe(name: str) -> str:
    """What ``--config`` means: a file if there is one, else the recipe of that name, with or without its ending.

    Raises:
        ConfigError: there is neither; the message names all recipes of the folder, or all there are.
    """
    if Path(name).exists() or not _NAME.fullmatch(name):  # values may also be given as YAML itself
        return name
    known = recipes()
    if file := known.get(name.removesuffix(_SUFFIX)):
        return str(file)
    folder = name.partition("/")[0] + "/"
    there = [recipe for recipe in known if recipe.startswith(folder)]
    kind = f"recipes of {folder}" if there else "recipes"
    raise ConfigError(f"--config {name} is neither a file nor a recipe: the {kind} are {', '.join(there or known)}")


def with_recipes(options: Sequence[str]) -> list[str]:
    """The options, with names of recipes behind ``--config`` replaced by their files."""
    found: list[str] = []
    for option in options:
        word, equals, value = option.partition("=")
        if word == "--config" and equals:
            found.append(f"--config={find_recipe(value)}")
        elif found and found[-1] == "--config" and not option.startswith("--"):
            found.append(find_recipe(option))
        else:
            found.append(option)
    return found
