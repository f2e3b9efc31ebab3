"""Stand-ins for absent neighbours on one machine: real servers that speak the neighbours' own contracts."""
