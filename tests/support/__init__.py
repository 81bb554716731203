"""What several test files share: made-up records, tiny models, processes, a browser."""
