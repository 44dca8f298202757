"""Pictures, words and boxes to one batch, and back."""
