"""Every route of the API against a running server."""
