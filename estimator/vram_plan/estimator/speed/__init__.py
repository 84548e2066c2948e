"""Step time: what is computed, how fast, and what travels meanwhile."""
