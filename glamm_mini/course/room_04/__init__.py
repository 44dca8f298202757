"""Room 04, notebooks/04_region_encoder.ipynb: what it builds, its graders, its pictures."""
