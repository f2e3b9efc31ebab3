"""Authentication, rate limits and TLS: who may call, and how often."""
