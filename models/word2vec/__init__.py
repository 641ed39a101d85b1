"""Word vectors by skip-gram with negative sampling (word2vec), of Wikipedia or your own text."""
