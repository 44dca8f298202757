"""Notebook 14: what it builds, its graders and its pictures."""
