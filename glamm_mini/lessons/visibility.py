"""How much of a thing hides behind others."""

from dataclasses import replace

from glamm_mini.datasets.storybook.render import render


def hidden_share(scene, index):
    """The share of a thing's pixels that other things cover, 0..1; scene is a Scene, index counts its things."""
    visible = render(scene, 128).thing_masks[index]
    whole = render(replace(scene, things=(scene.things[index],)), 128).thing_masks[0]
    return 1 - visible.sum() / whole.sum()
