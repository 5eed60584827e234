"""How a step reports to the runner: its figures in a line of their own, or that it skips itself."""

import json

MARK = "RESULT "
SKIP = 77  # as automake's


def result(**figures) -> None:
    """Flushed: what comes later may crash."""
    print(MARK + json.dumps(figures), flush=True)


def skip(reason: str) -> int:
    """Returns the exit status."""
    print(reason)
    return SKIP
