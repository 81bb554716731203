"""Experiments: which runs a profile has, and how they are made."""
