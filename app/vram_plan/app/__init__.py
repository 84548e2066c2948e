"""The door: the command line. Parses, calls, prints."""
