"""Reference models, a package each, with an absl binary: `python -m models.gpt`."""

import logging
import os
import sys
import tempfile

# Before TensorFlow is imported: its notes on CPU features and absent GPUs would
# bury a binary's own lines. Set the variable to see them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _import_quietly() -> None:
    # While TensorFlow loads, its C++ side heeds no variable, so its standard
    # error goes into a file and comes back only if the import fails.
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
# The same for its Python side.
logging.getLogger("tensorflow").setLevel(logging.WARNING)
