"""Who is speaking, when a turn is over, and what was heard: machines without I/O that are given samples and times."""
