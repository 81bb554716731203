"""Experiments: the runs of each profile, and the code that makes them."""
