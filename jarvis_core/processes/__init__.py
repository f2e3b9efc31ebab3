"""Processes of this machine: workers, the services beside them, and the subprocesses of both."""
