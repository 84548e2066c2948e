"""Training methods: which weights learn and what is added to the model."""
