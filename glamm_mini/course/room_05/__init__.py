"""Room 05, notebooks/05_grounding_encoder.ipynb: what it builds, its graders, its pictures."""
