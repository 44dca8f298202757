"""Notebook 04: what it builds, its graders and its pictures."""
