"""The embedded world: picture-book scenes, the language about them, the tiny model's own training and scores."""
