"""Audio: from what clients send to samples, and from samples to what they hear; in processes of its own."""
