"""The comparison: predictions beside measurements."""
