"""Predicted beside published step times, and the efficiency curves fitted on them."""
