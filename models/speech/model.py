"""The network: convolutions over time, of Keras's own layers."""

import keras
from keras import layers

STRIDE = 3  # Frames of input for each frame of output.


def build(mels: int, symbols: int, width: int, blocks: int, dropout: float) -> keras.Model:
    """Residual convolutions over time, as Wav2Letter (Collobert et al., 2016) and its successors.

    In training, whole bands and whole frames of the input are dropped, which is SpecAugment (Park
    et al., 2019) with masks of the least size.

    Args:
      mels: bands of the input.
      symbols: number of symbols, without the blank.
      width: channels of the convolutions.
      blocks: number of blocks, each of which adds what it sees in 7 frames of output.
      dropout: dropout rate in blocks, of bands and of frames.

    Returns:
      A model from float32 [batch, frames, mels] to float32 logits
      [batch, ceil(frames / STRIDE), 1 + symbols], of which the first is CTC's blank.
    """
    frames = keras.Input([None, mels], name="frames")
    x = layers.Dropout(dropout, noise_shape=(None, 1, mels), name="bands")(frames)
    x = layers.Dropout(dropout, noise_shape=(None, None, 1), name="frames_dropped")(x)
    x = layers.Conv1D(width, 9, strides=STRIDE, padding="same", activation="gelu", name="in")(x)
    for i in range(blocks):
        h = layers.LayerNormalization(name=f"block{i}_norm")(x)
        h = layers.Conv1D(width, 7, padding="same", activation="gelu", name=f"block{i}_time")(h)
        h = layers.Dropout(dropout, name=f"block{i}_dropout")(h)
        x = x + layers.Dense(width, name=f"block{i}_out")(h)
    x = layers.LayerNormalization(name="norm")(x)
    # Logits, and so the loss, are float32 whatever the layers compute in.
    return keras.Model(frames, layers.Dense(1 + symbols, dtype="float32", name="logits")(x))
