"""Named entities in text, found by an encoder of BERT, which may have been trained before."""
