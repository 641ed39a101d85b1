"""Programs written for plain Keras, run by a Trainer."""
