"""Translation by a transformer with beam search: English help into German, or files of lines."""
