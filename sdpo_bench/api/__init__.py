"""The functions that the command line and Python share: configuration files, settings by model, and `train`,
`evaluate`, `compare` and `load_results` as functions (docs/python.md)."""
