"""Audio to text, text to audio, and an answer spoken while it is written."""
