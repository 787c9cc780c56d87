"""Papers beside our runs: printed numbers, finished runs, tables of both."""
