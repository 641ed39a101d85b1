"""Classification of texts: the stars of a review, or the classes of your own table."""
