"""Notebook 09: what it builds, its graders and its pictures."""
