"""Load scenarios and the peers they are compared with; ``make perf`` runs them all on loopback."""
