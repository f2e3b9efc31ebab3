"""What is known of language alone: no I/O, and no other room."""
