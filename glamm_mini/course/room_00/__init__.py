"""Room 00, notebooks/00_tour.ipynb: what it builds, and its graders."""
