"""Reference models: a package for each model, with an absl binary such as `python -m models.gpt`.

All binaries share `task.py`, one program for every task of a cluster with the flags of the local
cluster, `network.py`, the flags of the Trainer and what a run says of its traffic, and
`program.py`, what is around `fit`. A model's package has its network, its data and a `__main__.py`
that joins them. `python -m models` lists the models.
"""

import logging
import os
import sys
import tempfile

# TensorFlow reads the variable when it is imported. Its notes on CPU features and absent GPUs would
# bury a binary's own lines; a user who wants to see the notes sets the variable to 0.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _import_quietly() -> None:
    # While TensorFlow loads, its C++ code ignores the variable. So standard error goes into a file,
    # and is printed only if the import fails.
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow_text  # noqa: F401  It brings TensorFlow along.
        except BaseException:
            notes.seek(0)
            os.write(kept, notes.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


if os.environ["TF_CPP_MIN_LOG_LEVEL"] != "0" and "tensorflow" not in sys.modules:
    _import_quietly()
# TensorFlow's Python code logs through this logger.
logging.getLogger("tensorflow").setLevel(logging.WARNING)
