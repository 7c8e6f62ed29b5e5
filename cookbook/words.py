"""The words that were typed behind make.

Standard library only: programs that run before anything is installed use this module, too.
"""

import os
import shlex
from collections.abc import Mapping, Sequence

from cookbook import UserError


def words_of_make(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """The command line, with `@ARGS` replaced by the words that make was given as ARGS="...".

    Blanks and quotes divide ARGS into words, as in a shell. Nothing else has a meaning there: braces, `$`, `#` and
    brackets stay as they are.
    """
    if "@ARGS" not in argv:
        return list(argv)
    text = environment.get("COOKBOOK_ARGS", "").replace("$$", "$")  # make's users may have doubled it
    try:
        given = shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"ARGS={text}: {error}; a quote that belongs to a value needs quotes of the other kind around it"
        ) from None
    return [word for each in argv for word in (given if each == "@ARGS" else [each])]
