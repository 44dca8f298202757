"""The storybook world: procedural picture-book scenes with masks, and everything that people say about them."""
