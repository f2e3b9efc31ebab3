"""The HTTP API and the WebSocket: routes, structs on the wire, errors."""
