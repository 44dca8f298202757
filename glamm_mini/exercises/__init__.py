"""Graders of the course's exercises, one module a notebook: they tell whether your function does what was asked."""
