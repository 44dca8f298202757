"""Room 07, notebooks/07_glamm.ipynb: what it builds, its graders, its pictures."""
