"""The command line: a file per command. Modules that import PyTorch are imported where they are used."""
