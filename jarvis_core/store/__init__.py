"""PostgreSQL, the only store, and the only home of SQL."""
