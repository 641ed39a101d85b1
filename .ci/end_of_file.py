"""Fails for files that do not end with exactly one newline."""

import pathlib
import sys

wrong = []
for name in sys.argv[1:]:
    text = pathlib.Path(name).read_bytes()
    if text and (not text.endswith(b"\n") or text.endswith(b"\n\n")):
        wrong.append(name)
print("\n".join(f"{name} must end with one newline" for name in wrong))
sys.exit(bool(wrong))
