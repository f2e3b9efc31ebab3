"""``/v1``: what clients of OpenAI's API expect, over the same parts as the rest."""
