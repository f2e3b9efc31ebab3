"""Turns, one exchange each: their production, readers and ends, and the turns of other workers."""
