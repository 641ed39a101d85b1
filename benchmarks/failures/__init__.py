"""What becomes of a job whose tasks die: a demonstration (`chaos.py`), and measurements."""
