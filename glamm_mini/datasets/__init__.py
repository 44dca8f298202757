"""Data: one typed record for all tasks, the storybook world, and the collation of records into batches."""
