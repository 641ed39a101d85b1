"""A program's side of the protocol with the main process: JSON lines in, JSON lines out."""

import json
import os
import sys
import traceback
from collections.abc import Callable

_LONGEST = 300  # characters of an error that go into tables; all of it is in the log


_answers = sys.stdout


def mark() -> None:
    """Tells the main process to read the byte counters: the clock starts, or stops, now."""
    _say({"mark": True})


def _say(message: dict) -> None:
    print(json.dumps(message), file=_answers, flush=True)


def serve(handle: Callable[[dict], dict]) -> None:
    """Says that the program is ready, then answers each line; never returns.

    The program ends when its standard input does, which is also when the main
    process is gone, however that came about.

    Args:
      handle: called with each message; what it raises becomes the answer's `error`.
    """
    # Libraries print to standard output too, so answers have a stream of their own.
    global _answers
    _answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _say({"ready": True})
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as e:
            traceback.print_exc()
            text = " ".join(f"{type(e).__name__}: {e}".split())
            answer = {"error": text[:_LONGEST] + " …" * (len(text) > _LONGEST)}
        _say(answer)
    # Threads of TensorFlow's servers would keep the interpreter from ending.
    os._exit(0)
