"""Training: sampling, dense rewards, advantages, updates, evaluation, and the life of a run."""
