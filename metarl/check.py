"""Examine a task distribution and say in plain words what is wrong: `python -m metarl.check MODULE:OBJECT`.

OBJECT is a task distribution, or a class or function that makes one without arguments.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from metarl.rl.task_checks import check
from metarl.rl.task_distribution import describe_error

__all__ = ["check", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Check what is named on the command line; a line per defect and exit status 1, or 2 for bad input."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words in (["--help"], ["-h"]):
        print("usage: python -m metarl.check MODULE:OBJECT\n\nSay what is wrong with a task distribution.")
        sys.exit(0)
    if len(words) != 1 or words[0].count(":") != 1:
        _leave("allowed: one argument MODULE:OBJECT, such as metarl.envs:Navigation2D")
    module_name, object_name = words[0].split(":")
    sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), object_name)
        distribution = found() if callable(found) else found
    except Exception as error:
        _leave(f"{words[0]} cannot be made: {describe_error(error)}")
    defects = check(distribution)
    for defect in defects:
        print(defect)
    sys.exit(1 if defects else 0)


def _leave(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
