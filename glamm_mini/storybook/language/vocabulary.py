"""The canonical words of the storybook world, and which things and stuff may meet where.

Every other storybook module speaks these words: the sampler composes scenes of them, the artist draws them, and
`words.py` adds the synonyms that people use for them.
"""

WORLD_VERSION = "1"

SPLITS = ("train", "val", "test", "compositional")

CLASSES = (
    "balloon", "house", "tree", "boat", "car", "cloud", "sun", "bird", "fish", "kite",
    "flower", "umbrella", "lighthouse", "rock", "fence", "mountain", "snowman", "cactus", "mushroom", "star",
)  # fmt: skip

# The body colours, 0..255. The stuff colours of `art/ground.py` are paler or greyer, so that things stand out.
COLOURS = {
    "red": (221, 62, 58),
    "orange": (242, 130, 36),
    "yellow": (252, 206, 62),
    "green": (52, 146, 86),
    "blue": (45, 100, 192),
    "purple": (130, 80, 172),
    "pink": (246, 148, 184),
    "white": (251, 249, 243),
}

PATTERNS = ("plain", "striped", "dotted")

# The longer side of a thing's extent over sqrt(width * height); a drawn thing is within 8 % of it.
SIZES = {"small": 0.15, "medium": 0.24, "large": 0.36}
SIZE_JITTER = 0.08

STUFF = ("sky", "night sky", "meadow", "field", "sea", "sand", "snow", "road", "dunes")
SKIES = ("sky", "night sky")

PLACES = ("countryside", "seaside", "town", "desert", "winter")

# Grounds of a place, back to front, each with its share of the place's scenes.
GROUNDS = {
    "countryside": ((0.35, ("meadow",)), (0.32, ("field", "meadow")), (0.15, ("meadow", "road")),
                    (0.18, ("meadow", "field"))),
    "seaside": ((0.45, ("sea", "sand")), (0.20, ("sea",)), (0.20, ("sea", "meadow")), (0.15, ("meadow", "sea"))),
    "town": ((0.65, ("meadow", "road")), (0.35, ("road", "meadow"))),
    "desert": ((0.42, ("dunes",)), (0.36, ("dunes", "sand")), (0.22, ("dunes", "road"))),
    "winter": ((0.42, ("snow",)), (0.22, ("snow", "road")), (0.36, ("sea", "snow"))),
}  # fmt: skip

# Things that fly have a sky as their home; all others stand, swim or drive on the stuff named here.
HOMES = {
    "balloon": SKIES,
    "cloud": SKIES,
    "sun": ("sky",),
    "bird": SKIES,
    "kite": SKIES,
    "star": ("night sky",),
    "house": ("meadow", "field", "snow", "dunes", "sand"),
    "tree": ("meadow", "field", "snow"),
    "boat": ("sea",),
    "car": ("road",),
    "fish": ("sea",),
    "flower": ("meadow", "field"),
    "umbrella": ("sand", "meadow", "dunes"),
    "lighthouse": ("sand", "meadow", "snow"),
    "rock": ("meadow", "sand", "dunes", "snow", "sea"),
    "fence": ("meadow", "field", "snow", "sand"),
    "mountain": ("meadow", "field", "snow", "dunes"),
    "snowman": ("snow",),
    "cactus": ("dunes", "sand"),
    "mushroom": ("meadow", "field"),
}
FLYING = tuple(name for name in CLASSES if set(HOMES[name]) <= set(SKIES))

# What may be met at a place, with how likely it is picked; the rest never occurs there.
PLACE_CLASSES = {
    "countryside": {"balloon": 0.8, "house": 0.9, "tree": 1.8, "cloud": 0.9, "sun": 1.8, "bird": 0.7, "kite": 1.2,
                    "flower": 2.2, "rock": 0.5, "fence": 1.0, "mountain": 0.9, "mushroom": 2.6, "star": 2.2,
                    "car": 1.4},
    "seaside": {"balloon": 0.6, "cloud": 0.9, "sun": 1.8, "bird": 0.7, "kite": 1.2, "boat": 2.8, "fish": 4.2,
                "umbrella": 2.2, "lighthouse": 3.2, "rock": 0.5, "house": 0.5, "fence": 0.6, "star": 1.8,
                "tree": 0.8, "flower": 1.0},
    "town": {"balloon": 0.8, "house": 1.4, "tree": 1.8, "car": 2.2, "cloud": 0.9, "bird": 0.7, "kite": 1.0,
             "sun": 1.6, "fence": 0.9, "flower": 2.0, "umbrella": 0.9, "star": 1.8, "mushroom": 1.4},
    "desert": {"balloon": 0.9, "cloud": 1.0, "sun": 2.0, "bird": 0.8, "kite": 0.9, "rock": 1.6, "mountain": 1.3,
               "cactus": 4.6, "car": 2.0, "house": 0.8, "star": 2.2, "umbrella": 0.9},
    "winter": {"balloon": 0.7, "cloud": 0.8, "sun": 1.6, "bird": 0.6, "snowman": 3.2, "tree": 1.5, "house": 0.8,
               "mountain": 1.1, "fence": 0.9, "lighthouse": 1.8, "car": 1.2, "boat": 2.2, "fish": 3.4, "star": 1.8,
               "rock": 0.6},
}  # fmt: skip

# Pairs of class and colour that training never shows: one of each class, each colour two or three times.
UNSEEN_PAIRS = frozenset({
    ("balloon", "green"), ("house", "purple"), ("tree", "blue"), ("boat", "orange"), ("car", "pink"),
    ("cloud", "yellow"), ("sun", "red"), ("bird", "white"), ("fish", "green"), ("kite", "purple"),
    ("flower", "blue"), ("umbrella", "orange"), ("lighthouse", "yellow"), ("rock", "red"), ("fence", "pink"),
    ("mountain", "white"), ("snowman", "red"), ("cactus", "purple"), ("mushroom", "orange"), ("star", "green"),
})  # fmt: skip


def is_unseen(thing: dict) -> bool:
    """Whether training never shows the pair of a record's "cls" and "colour"; an open colour does not make one."""
    return (thing.get("cls"), thing.get("colour")) in UNSEEN_PAIRS


def means_unseen(things: list[dict], members: tuple[int, ...]) -> bool:
    """Whether words that mean `members`, indices of `things`, mean unseen things alone; False for stuff."""
    return len(members) > 0 and all(is_unseen(things[k]) for k in members)
