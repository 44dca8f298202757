"""The tiny model's own training: three backbones from nothing, then GLaMM from them."""
