"""The processes of this machine: workers, services, and what they run."""
