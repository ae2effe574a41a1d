"""Errors that a user can mend, told in one line: what was given, what was expected, what to do.

The scripts print such an error as `error: ...` without a traceback and leave with its `exit_code`.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something a user can mend: bad data, a run directory that does not fit (exit code 1)."""

    exit_code = 1


class UsageError(UserError):
    """A command that cannot be carried out as typed (exit code 2)."""

    exit_code = 2


def unknown(kind: str, given: str, options: Iterable[str]) -> UsageError:
    """The error for a name that is none of `options`: names the nearest one and lists all.

    >>> print(unknown("sampler", "huen", ["euler", "heun"]))
    unknown sampler 'huen': did you mean 'heun'? (known: euler, heun)
    """
    options = list(options)
    close = difflib.get_close_matches(given.lower(), options, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return UsageError(f"unknown {kind} '{given}': {hint}(known: {', '.join(options)})")
