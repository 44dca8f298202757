"""What is said about a scene: words, captions, expressions, questions, conversations."""
