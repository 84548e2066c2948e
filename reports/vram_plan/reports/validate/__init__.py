"""Measured rows against the plan: what other people's runs read, and what is predicted of them."""
