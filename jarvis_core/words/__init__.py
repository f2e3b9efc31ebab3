"""Knowledge of natural language alone: no I/O, and no import of another package of ours."""
