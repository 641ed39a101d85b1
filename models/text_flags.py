"""Flags that models of text share. Each model has defaults of its own, as `set_defaults` gives."""

from absl import flags

import tfps

FLAGS = flags.FLAGS

# Those of a model whose encoder has its size and its vocabulary already.
WITHOUT_SIZE = ("context", "dropout", "warmup_steps")

flags.DEFINE_integer("vocabulary", 4096, "Most word pieces to learn.", lower_bound=300)
flags.DEFINE_integer("layers", 4, "Transformer blocks.", lower_bound=1)
flags.DEFINE_integer("width", 128, "Width of the vector of each token.", lower_bound=1)
flags.DEFINE_integer("heads", 4, "Attention heads in a block.", lower_bound=1)
flags.DEFINE_integer("context", 64, "Tokens in a window.", lower_bound=4)
flags.DEFINE_float("dropout", 0.0, "Dropout rate.", lower_bound=0.0, upper_bound=0.95)
flags.DEFINE_integer(
    "steps_per_epoch",
    None,
    "Batches in an epoch, over all workers together. Default: every window once.",
    lower_bound=1,
)
flags.DEFINE_integer("warmup_steps", 100, "Steps of linear warm-up.", lower_bound=0)


def check_heads() -> None:
    """Checks that all heads of attention are equally wide.

    Raises:
      ConfigError: --width is not a multiple of --heads.
    """
    if FLAGS.width % FLAGS.heads:
        raise tfps.ConfigError(
            f"--width={FLAGS.width} is not a multiple of --heads={FLAGS.heads}; change one of them"
        )
