"""The core of a self-hosted voice assistant: turns, memory and speech between frontends and the AI and audio services."""

__version__ = "1.9.0"
