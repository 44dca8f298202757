"""Notebook 05: what it builds, its graders and its pictures."""
