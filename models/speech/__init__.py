"""Speech recognition by convolutions and CTC: telephone prompts, or LibriSpeech folders."""
