"""Room 09, notebooks/09_grounded_conversation.ipynb: what it builds, its graders, its pictures."""
