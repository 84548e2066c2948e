"""The best way to run a fine-tune among many: ranges in, ranked plans and their front out."""
