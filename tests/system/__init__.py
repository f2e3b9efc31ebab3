"""The real product as a process of its own: started, used, stopped and killed."""
