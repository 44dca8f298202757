"""Notebook 03: what it builds, its graders and its pictures."""
