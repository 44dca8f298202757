"""Room 03, notebooks/03_vl_projector.ipynb: what it builds, its graders, its pictures."""
