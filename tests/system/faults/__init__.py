"""Everything around the server fails, and what it told its clients is held against what it has afterwards."""
