"""Ask a trained GLaMM about a picture: load, questions, chat, answers."""
