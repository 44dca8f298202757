"""Room 13, notebooks/13_official_weights.ipynb: what it builds, its graders, its pictures."""
