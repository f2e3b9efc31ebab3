"""One exchange: the turn, its readers, its end, and those that run on other workers."""
