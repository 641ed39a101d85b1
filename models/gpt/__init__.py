"""GPT, a language model of text files, with bytes or word pieces as tokens."""
