"""Figures: a file per subject."""
