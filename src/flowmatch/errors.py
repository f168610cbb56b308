"""The one exception that means "the input has to change", told apart from a defect of ours.

Core functions raise ``ValueError`` and ``TypeError`` like PyTorch does. Everything that reads
a user's files, tables and options raises :class:`InputError`, whose message says what was
given, what is expected and how to mend it. The command line turns it into one line and exit
code 2; a caller in Python may catch it, or the ``ValueError`` that it is.
"""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Something the user gave cannot be used; the message says how to mend it.

    Example:
        >>> raise InputError("no file at data.csv; give an existing .csv file")
        Traceback (most recent call last):
            ...
        flowmatch.errors.InputError: no file at data.csv; give an existing .csv file
    """
