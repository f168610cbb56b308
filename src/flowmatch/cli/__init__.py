"""The command line: ``flowmatch train | sample | score | evaluate | tune | average | features | export | recipes``.

Exit codes: 0 done; 2 the input has to change (the message says how); 1 anything else; 130 interrupted.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> int:
    """Run the command line; returns the exit code."""
    try:
        from flowmatch.cli.app import run
    except ImportError as error:
        import sys

        sys.stderr.write(f'flowmatch: the command line needs {error.name}: pip install "flowmatch[cli]"\n')
        return 1
    return run()
