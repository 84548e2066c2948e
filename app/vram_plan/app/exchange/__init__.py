"""Configurations of other tools: written for the plan's configuration, and read into one."""
