"""The HTTP routes; every answer in these tests is held against the OpenAPI document."""
