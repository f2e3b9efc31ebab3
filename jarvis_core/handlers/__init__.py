"""What clients see: routes, the structs on the wire, and how errors look."""
