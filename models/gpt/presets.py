"""Sizes of the network by name."""

from absl import flags

FLAGS = flags.FLAGS

# Name -> values of flags. "tiny" is what the binary trains without any of these flags.
PRESETS: dict[str, dict] = {
    "tiny": {
        "layers": 4, "width": 128, "heads": 4, "context": 64, "tokenizer": "bytes", "tied": False,
    },
    "small": {
        "layers": 6, "width": 384, "heads": 6, "context": 256, "tokenizer": "wordpiece",
        "vocabulary": 8192, "tied": True,
    },
    "medium": {
        "layers": 8, "width": 512, "heads": 8, "context": 512, "tokenizer": "wordpiece",
        "vocabulary": 16384, "tied": True,
    },
    # 124 million parameters, as Radford et al. had (2019).
    "gpt2": {
        "layers": 12, "width": 768, "heads": 12, "context": 1024, "tokenizer": "wordpiece",
        "vocabulary": 50257, "tied": True,
    },
}  # fmt: skip


def use(name: str | None) -> None:
    """Makes a preset's values the defaults of their flags; what the command line gives stays.

    Args:
      name: of the preset, or None for no change.
    """
    for flag, value in PRESETS.get(name, {}).items():
        FLAGS.set_default(flag, value)
