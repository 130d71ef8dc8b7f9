"""The command line: options are the arguments of the functions that do the work."""
