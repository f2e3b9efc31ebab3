"""The WebSocket: turns in text and voice, in the vocabulary of the OpenAI Realtime API."""
