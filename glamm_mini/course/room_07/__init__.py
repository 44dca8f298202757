"""Notebook 07: what it builds, its graders and its pictures."""
