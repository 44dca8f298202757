"""Room 01, notebooks/01_storybook_data.ipynb: what it builds, its graders, its pictures."""
