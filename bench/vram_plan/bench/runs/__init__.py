"""Real runs: each in processes of its own, watched, stored, beside its prediction."""
