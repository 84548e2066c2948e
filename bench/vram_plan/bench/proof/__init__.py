"""The proof: closed form against dry run over a sample of configurations."""
