"""How a step reports to the runner: figures on a marked line, or an exit status that says it was skipped."""

import json

MARK = "RESULT "
SKIP = 77  # as in automake


def result(**figures: object) -> None:
    """Reports figures. The line is flushed, since later code may crash."""
    print(MARK + json.dumps(figures), flush=True)


def skip(reason: str) -> int:
    """Prints why the step is skipped, and returns the exit status."""
    print(reason)
    return SKIP
