"""The programs behind make's targets: what was typed as ARGS, and how a program ends.

Standard library only: programs that run before anything is installed use this module, too.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from cookbook import UserError, redact


def argv_of_make(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> list[str]:
    """A program's arguments, with `@ARGS` replaced by what make was given as ARGS="...".

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


def run_program(main: Callable[[Sequence[str]], int | None]) -> NoReturn:
    """Runs one of make's programs, and ends the process with what it returns: None or 0 is well.

    A UserError is one line without a traceback, with its secrets taken out; Ctrl-C ends the program with status 130.
    """
    try:
        sys.exit(main(argv_of_make(sys.argv[1:])))
    except UserError as error:
        raise SystemExit(redact.redacted_text(f"error: {error}")) from None
    except (KeyboardInterrupt, EOFError):  # EOFError: Ctrl-D at a question
        sys.exit(130)
    except BrokenPipeError:  # `make doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:  # a folder that cannot be written, a full disk
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise SystemExit(redact.redacted_text(f"error: {what}")) from None
