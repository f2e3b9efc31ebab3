"""What stands in for an absent neighbour on one machine: real servers that speak the neighbours' own contracts."""
