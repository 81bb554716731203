"""The command line: a file per command. Modules that import PyTorch are imported when they are used."""
