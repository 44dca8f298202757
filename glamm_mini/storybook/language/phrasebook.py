"""Every template of the storybook language: what is asked, how captions are built, how answers open.

Slots stand in braces. A template that starts in lower case may open a sentence; the draft capitalizes it then.
"""

from glamm_mini.storybook.language import vocabulary

# ---- captions ----

VERBS = {
    "balloon": ("float", "drift", "hover"),
    "house": ("stand", "sit"),
    "tree": ("stand", "grow"),
    "boat": ("sail", "float"),
    "car": ("drive", "roll", "wait"),
    "cloud": ("float", "drift"),
    "sun": ("shine", "glow"),
    "bird": ("fly", "soar"),
    "fish": ("swim", "glide"),
    "kite": ("fly", "soar", "dance"),
    "flower": ("grow", "bloom"),
    "umbrella": ("stand",),
    "lighthouse": ("stand", "rise"),
    "rock": ("lie", "sit"),
    "fence": ("stand",),
    "mountain": ("rise", "stand"),
    "snowman": ("stand", "wait"),
    "cactus": ("stand", "grow"),
    "mushroom": ("grow", "stand"),
    "star": ("shine", "twinkle", "glow"),
}
"""Class to its verbs, in the plural form."""

NEEDS_PLACE = ("lie", "sit", "rise", "drive", "roll")
"""Verbs that sound unfinished without a word of place."""

HOME_WORDS = {
    "sky": ("in",),
    "night sky": ("in",),
    "meadow": ("in", "on"),
    "field": ("in",),
    "sea": ("on",),
    "sand": ("on",),
    "snow": ("in", "on"),
    "road": ("on", "along"),
    "dunes": ("in", "among"),
}
"""Kind of stuff to the prepositions of things that are at home there."""

IN_WATER = ("fish", "rock")
"""Classes that are in the sea rather than on it."""

RELATION_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "beside": ("next to", "beside", "by"),
    "behind": ("behind",),
    "front": ("in front of",),
}

WITH_WORDS = {
    "left": ("on {its} right", "to {its} right"),
    "above": ("below {it}", "under {it}"),
    "below": ("above {it}", "over {it}"),
    "beside": ("beside {it}", "next to {it}"),
    "behind": ("in front of {it}",),
    "front": ("behind {it}",),
}
"""Relation of a to b, to where b is as seen from a: "a flies with b below it"."""

SPOTS = ("on the left", "in the middle", "on the right")
"""Where in the picture: its thirds, clearly."""

LISTS = (
    "there {is} {list}",
    "we see {list}",
    "you can see {list}",
    "here {is} {list}",
    "here you see {list}",
    "the picture shows {list}",
    "the scene shows {list}",
    "from left to right there {is} {list}",
    "from left to right we see {list}",
)
"""Clauses that name things without a verb of their own. "{is}" agrees with the first thing."""
LATER_LISTS = ("there {is} also {list}", "then there {is} {list}", "we also see {list}", "you can also see {list}")

JOINS = (", and ", ", while ", "; ")
PLAIN_JOINS = ("; ", ", and ")
"""Between clauses of which one is a list."""

OPENINGS = (
    "{stuff} fill{s} the picture. ",
    "{stuff} make{s} up the background. ",
    "the background is {stuff}. ",
    "the scene is set in {stuff}. ",
    "we see {stuff}. ",
    "the picture shows {stuff}. ",
)
SKY_OPENINGS = (
    "{sky} stretches over {ground}. ",
    "{sky} arches over {ground}. ",
    "{sky} hangs over {ground}. ",
    "{sky} lies over {ground}. ",
    "{sky} meets {ground}. ",
    "{ground} lie{s} under {sky}. ",
    "under {sky} lie{s} {ground}. ",
)
FRONTS = ("in a scene of {stuff}, ", "in a picture of {stuff}, ", "against {stuff}, ", "with {stuff} as background, ")
SKY_FRONTS = (
    "where {sky} meets {ground}, ",
    "with {sky} above and {ground} below, ",
    "with {ground} under {sky}, ",
    "in a scene with {sky} above {ground}, ",
)
TAILS = (", with {stuff} in the background", ", all against {stuff}", ", with {stuff} around {them}")
SKY_TAILS = (
    ", with {sky} above and {ground} below",
    ", with {ground} under {sky}",
    ", where {sky} meets {ground}",
    ", and {sky} stretches over {ground}",
)
CLOSINGS = (
    ". behind {them} {is} {stuff}",
    ". around {them} {is} {stuff}",
    ". the background is {stuff}",
    ". {stuff} make{s} up the background",
    ". {stuff} fill{s} the rest",
    ". the rest is {stuff}",
)
SKY_CLOSINGS = (
    ". {sky} is above and {ground} {is} below",
    ". {sky} stretches over {ground}",
    ". {sky} arches over {ground}",
    ". {ground} lie{s} under {sky}",
)

PLACE_WORDS = {
    "countryside": ("in the countryside", "in the country"),
    "seaside": ("at the seaside", "by the sea"),
    "town": ("in a town", "in town"),
    "desert": ("in the desert", "in a desert"),
    "winter": ("in winter", "on a winter day"),
}
SCENE_WORDS = {place: f"a {place} scene" for place in vocabulary.PLACES}
NIGHT_WORDS = ("at night", "one night")

REGION_ANSWERS = ("{x}", "{x}", "{x}", "this is {x}", "it is {x}", "the region shows {x}", "here is {x}")

# ---- referring ----

GENERAL = ("thing", "object")
"""Words for a thing whose class is not said. Every thing fits them."""

SIDES = {
    "leftmost": ("the leftmost {noun}", "the {noun} on the far left", "the {noun} furthest to the left"),
    "rightmost": ("the rightmost {noun}", "the {noun} on the far right", "the {noun} furthest to the right"),
    "highest": ("the highest {noun}", "the topmost {noun}", "the {noun} highest up"),
    "lowest": ("the lowest {noun}", "the {noun} furthest down", "the {noun} nearest to the bottom"),
    "largest": ("the largest {noun}", "the biggest {noun}"),
    "smallest": ("the smallest {noun}",),
}
ORDINALS = ("first", "second", "third", "fourth", "fifth")
BY_HOME = "the {noun} {place}"
BY_RELATION = ("the {noun} {relation} {landmark}", "the {noun} that is {relation} {landmark}")
GROUPS_OF_ALL = ("all the {nouns}", "the {nouns}", "all {nouns}", "every {noun}")
GROUPS_OF_TWO = ("both {nouns}", "the two {nouns}", "the pair of {nouns}")

# ---- what is asked ----

QUESTIONS = {
    "gcg": (
        "Describe the image with masks.",
        "Describe the picture with segmentation masks.",
        "Please describe the image and ground each phrase.",
        "What do you see? Answer with masks.",
        "Tell me about the picture and point out each thing.",
        "Give me a grounded caption of the image.",
        "Write a grounded description of this picture.",
        "Describe everything in the picture and segment it.",
        "Can you describe the scene and mark every part?",
        "What is in the image? Please answer with segmentation masks.",
        "Caption the image with a mask for each phrase.",
        "Describe this scene in detail, with interleaved segmentation masks.",
        "Show and tell me all that is in the picture.",
        "Please give a grounded description of the scene.",
        "Could you please give me a detailed description of the image? Please respond with interleaved segmentation"
        " masks for the corresponding parts of the answer.",
    ),
    "refseg": (
        "Segment {x}.",
        "Please segment {x} in the image.",
        "Can you segment {x} in this image?",
        "Where {is} {x}?",
        "Where {is} {x} in the picture?",
        "Show me {x}.",
        "Find {x}.",
        "Can you find {x}?",
        "Point out {x}.",
        "Mark {x} in the picture, please.",
        "Locate {x}.",
        "Give me the mask of {x}.",
        "Highlight {x}.",
        "I am looking for {x}.",
        "Please show me where {x} {is}.",
    ),
    "regcap": (
        "What is in <bbox>?",
        "Describe the region <bbox>.",
        "Describe <bbox>.",
        "Please describe what is in <bbox>.",
        "What does the region <bbox> show?",
        "Give a short description of <bbox>.",
        "Give me a description of <bbox>.",
        "Can you describe the region <bbox> in the picture?",
        "Caption the region <bbox>.",
        "What can you tell me about <bbox>?",
        "Write a caption for the region <bbox>.",
        "Tell me about the thing in <bbox>.",
        "How would you describe <bbox>?",
        "Can you provide me with a detailed description of the region in the picture marked by <bbox>?",
    ),
    "caption": (
        "Describe the image.",
        "Describe the picture.",
        "What do you see?",
        "Write a caption for the image.",
        "Caption this picture.",
        "Please describe the image in short.",
        "Tell me what is in the picture.",
        "What does the picture show?",
        "Give me a short description of the image.",
        "What is in the image?",
        "Can you describe the scene?",
        "Write a short caption.",
    ),
    "grounding": (
        "Ground this sentence: {x}",
        "Ground the phrases of this sentence: {x}",
        "Please ground: {x}",
        "Mark the phrases of this sentence in the image: {x}",
        "Point out what this sentence names: {x}",
        "Segment what this caption names: {x}",
        "Find each phrase in the picture: {x}",
        "Show me each part of this sentence: {x}",
        "Give a mask for each phrase: {x}",
        "Locate the things in this sentence: {x}",
        "Repeat this sentence with masks: {x}",
        "Can you ground this caption? {x}",
        "Which parts of the image does this sentence name? {x}",
    ),
}

REFSEG_ANSWERS = ("{it} {is} {x}.", "here {is} {x}.", "sure, here {is} {x}.", "sure, {it} {is} {x}.", "this {is} {x}.")
ABSENT_ANSWER = "There is no {x} in the picture."

MASK_AGAIN = ("Where {is} {it}?", "Segment {it}.", "Show {it} to me.", "Can you mark {it}?", "Point {it} out, please.")
AGAIN = {
    "colour": ("What colour is it?", "And what colour is it?", "Which colour does it have?"),
    "pattern": ("Is it plain, striped or dotted?", "What pattern does it have?", "And what is its pattern?"),
    "size": ("How large is it?", "Is it small, medium or large?", "And how big is it?"),
}
NEXT = ("Now segment {x}.", "Now show me {x}, please.", "And where {is} {x}?", "Can you also find {x}?")
NEXT_AFTER_MASK = (*NEXT, "And {x}?")

# ---- questions with short answers ----

SHORT = {
    "count": (
        "How many {nouns} are there?",
        "How many {nouns} can you see?",
        "How many {nouns} do you see?",
        "How many {nouns} does the picture show?",
        "Count the {nouns}.",
        "What is the number of {nouns}?",
    ),
    "colour": (
        "What colour is {x}?",
        "Which colour is {x}?",
        "What colour does {x} have?",
        "Tell me the colour of {x}.",
        "What is the colour of {x}?",
    ),
    "exists": ("Is there {x}?", "Can you see {x}?", "Do you see {x}?", "Is there {x} in the picture?"),
    "pattern": (
        "Is {x} plain, striped or dotted?",
        "Is {x} dotted, striped or plain?",
        "What pattern does {x} have?",
        "Which pattern does {x} have?",
        "What is the pattern of {x}?",
    ),
    "larger": (
        "Which is larger, {x} or {y}?",
        "Which is bigger, {x} or {y}?",
        "Which of the two is larger, {x} or {y}?",
    ),
    "smaller": ("Which is smaller, {x} or {y}?", "Which of the two is smaller, {x} or {y}?"),
    "larger than": ("Is {x} larger than {y}?", "Is {x} bigger than {y}?"),
    "side": ("Is {x} left or right of {y}?", "Is {x} to the left or to the right of {y}?"),
    "above": ("Is {x} above or below {y}?", "Is {x} over or under {y}?"),
    "higher": ("Is {x} higher or lower in the picture than {y}?",),
    "left": ("Is {x} left of {y}?", "Is {x} to the left of {y}?"),
    "right": ("Is {x} right of {y}?", "Is {x} to the right of {y}?"),
    "place": ("Where is this?", "What place is this?", "Where does this scene take place?", "Which place do you see?"),
    "time": ("Is it day or night?", "Is it night or day?", "What time of day is it?"),
    "what is behind": ("What is behind {x}?", "What does {x} partly hide?", "What do you see behind {x}?"),
    "what is in front": ("What is in front of {x}?", "What partly hides {x}?", "What do you see in front of {x}?"),
    "what is left": ("What is left of {x}?", "What is to the left of {x}?", "What do you see left of {x}?"),
    "what is right": ("What is right of {x}?", "What is to the right of {x}?", "What do you see right of {x}?"),
    "what": ("What kind of thing is {x}?", "Which kind of thing is in {x}?", "Name the kind of thing in {x}."),
    "size": ("How large is {x}?", "What size is {x}?", "How big is {x}?", "Is {x} small, medium or large?"),
}

WORD_ANSWERS = ("Yes", "No", "Left", "Right", "Above", "Below", "Over", "Under", "Higher", "Lower", "Day", "Night")


def openers() -> list[str]:
    """Templates and words that may open a sentence, of those that are written in lower case."""
    texts = [*LISTS, *LATER_LISTS, *OPENINGS, *SKY_OPENINGS, *FRONTS, *SKY_FRONTS, *SPOTS, *NIGHT_WORDS]
    texts.extend(closing.removeprefix(". ") for closing in (*CLOSINGS, *SKY_CLOSINGS))
    texts.extend((*SCENE_WORDS.values(), *REGION_ANSWERS, *REFSEG_ANSWERS, "a scene", "an", "it", "they", "the"))
    for options in (*HOME_WORDS.values(), *PLACE_WORDS.values()):
        texts.extend(options)
    texts.extend((*vocabulary.COLOURS, *vocabulary.PATTERNS, *vocabulary.SIZES, "under"))
    return texts


def texts() -> list[str]:
    """All other templates and words of this file."""
    found = [*NEEDS_PLACE, *JOINS, *PLAIN_JOINS, *TAILS, *SKY_TAILS, *GENERAL, *ORDINALS, *BY_RELATION, *MASK_AGAIN]
    found.extend((*GROUPS_OF_ALL, *GROUPS_OF_TWO, *NEXT_AFTER_MASK, *WORD_ANSWERS, *CLOSINGS, *SKY_CLOSINGS))
    for table in (VERBS, RELATION_WORDS, WITH_WORDS, SIDES, QUESTIONS, AGAIN, SHORT):
        for options in table.values():
            found.extend(options)
    # What the slots {s}, {it}, {its} and {is}, and a few fixed turns of phrase, put in.
    found.append("fills makes lies it them its their they is are from the left right side by side scene with also")
    return found
