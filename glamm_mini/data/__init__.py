"""The one typed record that all tasks share, and batches of it."""
