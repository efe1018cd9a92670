"""Recipes by name: --config=electra:tiny, and --list."""

import argparse
import difflib
import inspect
import re
from pathlib import Path

from plmjax import PlmjaxError
from plmjax import config as config_lib

# The folders of configs/ in which a verb's recipes are, the first of them first.
_FOLDERS = {
    "pretrain": ("pretrain", "distill"),
    "bench": ("pretrain", "distill"),
    "data": ("pretrain", "distill"),
    "tokenizer": ("pretrain", "distill"),
    "sweep": ("sweeps",),
    "config": ("pretrain", "distill", "finetune"),
}


def names(verb: str) -> dict[str, str]:
    """Returns {name: FOLDER/NAME} of a verb's recipes.

    Of two with one name, that of a later folder is named with its folder.
    """
    named: dict[str, str] = {}
    for folder in _FOLDERS.get(verb, ("finetune",)):
        for full in config_lib.recipes(folder):
            short = full.partition("/")[2]
            named[full if short in named else short] = full
    return named


def resolve(text: str, verb: str) -> str:
    """Returns the name of a recipe, NAME[:argument], with its folder.

    A file, which may be on another machine alone, is returned as it is.

    Raises:
      PlmjaxError: the text is a name, but not that of a recipe of the verb.
    """
    name, colon, argument = text.partition(":")
    known = names(verb)
    recipe = name.removeprefix("configs/").removesuffix(".py")
    full = known.get(recipe, recipe)
    if Path(name).is_file():
        return text
    if full in known.values():
        return f"{full}{colon}{argument}"
    if full not in config_lib.recipes() and not re.fullmatch(r"[\w-]+", name):
        return text
    close = difflib.get_close_matches(recipe, known, 1)
    near = f"Did you mean {close[0]}? " if close else ""
    listed = f"{near}It has {', '.join(known)}; `plmjax {verb} --list` describes them."
    others = [
        verb
        for verb in ("pretrain", "finetune", "sweep")
        if recipe in {*names(verb), *names(verb).values()}
    ]
    hint = f"It is one of `plmjax {others[0]}`. {listed}" if others else listed
    raise PlmjaxError(f"`plmjax {verb}` has no recipe {name!r}.", hint=hint)


def table(verb: str) -> str:
    """Returns a text with the name, purpose and arguments of a verb's recipes."""
    lines = [f"Recipes of `plmjax {verb}`, for --config=NAME[:ARGUMENT]:"]
    known, files = names(verb), config_lib.recipes()
    width = max(map(len, known)) + 2
    for name, full in known.items():
        module = config_lib.execute(files[full])
        purpose = (module.__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:{width}}{purpose}")
        for parameter in inspect.signature(module.get_config).parameters.values():
            shown = [
                f":{argument}{' (default)' if argument == parameter.default else ''}"
                for argument in getattr(module, "ARGUMENTS", ())
            ]
            # Free to choose, such as the path of a teacher.
            free = f":{parameter.name.upper()} (default: {parameter.default})"
            shown = shown or [free]
            lines.append(f"  {'':{width}}{', '.join(shown)}")
    return "\n".join(lines)


class ListRecipes(argparse.Action):
    """An option that prints the recipes of a verb, and ends the command."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Prints the recipes."""
        del namespace, values, option_string
        print(table(parser.prog.split()[1]))
        parser.exit()
