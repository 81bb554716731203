"""Raw records of runs: the only source of every table and figure. Nothing here imports PyTorch."""
