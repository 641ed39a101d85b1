"""BERT, trained on raw text to find the words that are masked; `models.ner` goes on from it."""
