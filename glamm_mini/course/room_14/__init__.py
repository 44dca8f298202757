"""Room 14, notebooks/14_scaling_to_7b.ipynb: what it builds, its graders, its pictures."""
