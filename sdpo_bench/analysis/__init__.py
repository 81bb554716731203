"""Tables, figures and pages from records. Nothing here imports PyTorch or trains."""
