"""What was typed behind make, as words. Standard library only: programs that run before anything is installed use it, too."""

import os
import shlex

from cookbook import UserError


def words_of_make(words, environment=os.environ):
    """The command line, with `@ARGS` replaced by what was given to make as ARGS="...": blanks and quotes divide it as in a shell,
    and nothing else of a shell happens to it: no braces, no `$`, no `#`, no brackets."""
    if "@ARGS" not in words:
        return list(words)
    text = environment.get("COOKBOOK_ARGS", "").replace("$$", "$")  # who knows make has doubled it
    try:
        given = shlex.split(text)
    except ValueError as error:
        raise UserError(
            f"ARGS={text}: {error}; a quote that belongs to a value needs quotes of the other kind around it"
        ) from None
    return [word for each in words for word in (given if each == "@ARGS" else [each])]
