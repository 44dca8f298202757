"""Room 06, notebooks/06_pixel_decoder.ipynb: what it builds, its graders, its pictures."""
