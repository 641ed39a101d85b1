"""The model's and the batches' sizes: 7.4 million parameters, 256 tokens a step of a worker."""

VOCABULARY = 8192
BLOCKS = 4
WIDTH = 256
HEADS = 4
CONTEXT = 64  # tokens in a window
BATCH = 4  # windows in a worker's step
LEARNING_RATE = 1e-4
WORKERS = 2
