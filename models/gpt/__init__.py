"""A GPT-style language model on text files. Run it with `python -m models.gpt`."""
