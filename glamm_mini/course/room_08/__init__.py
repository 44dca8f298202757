"""Room 08, notebooks/08_training.ipynb: what it builds, its graders, its pictures."""
