"""Room 02, notebooks/02_grounding_tokens.ipynb: what it builds, its graders, its pictures."""
