"""Coarse silhouettes of all forms, for the sampler: what hides what must not depend on a drawing library.

Every entry is (width, height, rows): the form's box (longer side 1) and a 16 x 16 bitmap of it, four hexadecimal digits
a row from the top, leftmost cell first. `art.things.coarse_silhouette` draws an entry anew; a test holds them together.
"""

SILHOUETTES = {
    "balloon": ((0.76, 1.0, "07e01ffc3ffe7ffeffffffffffff7ffe3ffc1ff80ff007e0018003c003c003c0"),),
    "house": (
        (1.0, 0.92, "00181ff83ffc3ffc7ffe7ffeffff7ffe7ffe7ffe7ffe7ffe7ffe7ffe7ffe7ffe"),
        (0.74, 1.0, "018003dc07fc0ffc3ffc7ffeffff7ffe7ffe7ffe7ffe7ffe7ffe7ffe7ffe7ffe"),
    ),
    "tree": (
        (0.8, 1.0, "03e00ff01ff83ffc7ffeffffffffffff7ffe3ffc1ff807e003c003c003c007e0"),
        (0.7, 1.0, "018003c003c007e00ff01ff80ff00ff83ffc7ffe1ff83ffcffffffff03c003c0"),
    ),
    "boat": (
        (0.94, 1.0, "008001c003e007f007f80ff80ffc1ffc3ffe3ffe7fff7fff6067ffff7ffe1ffc"),
        (1.0, 0.74, "00c000e000e000e007e007e007e007e1c7e7ffff7ffe7ffe7ffe3ffc3ffc1ff8"),
    ),
    "car": (
        (1.0, 0.56, "07c007e00fe00ff00ff01ff03ff87ffefffeffffffffffffffffffff3c3c1818"),
        (1.0, 0.66, "7fe0fff0fff0fff8fff8fff8fffcfffeffffffffffffffffffffffff3c3c1818"),
    ),
    "cloud": (
        (1.0, 0.58, "07000f800ff01ff81ff83ffc7ffc7ffefffeffffffffffffffff7fff7ffe3ffe"),
        (1.0, 0.48, "06000f001fe01ff01ff83ffc7ffefffefffefffefffeffffffffffff7ffe7ffe"),
    ),
    "sun": ((1.0, 1.0, "00000db00ff03ffc3ffc3ffcffff3ffc3ffcffff3ffc3ffc3ffc0ff00db00000"),),
    "bird": (
        (1.0, 0.74, "0300070007800f800fc00fc00fc80ffc0ffeefff7ffe7ffc7ffcfff80ff003e0"),
        (1.0, 0.78, "00380078007c80fcc0fee1fffffe7ffc7ffc7ffc3ff81ff81ff01fc01e001c00"),
    ),
    "fish": ((1.0, 0.62, "00c001e0c3f0e3f8e3fc67fe7ffe7fff7fff7fff7ffe67fee3fcc1f881f001c0"),),
    "kite": ((0.72, 1.0, "018007e00ff83ffeffff7ffe1ffc0ff007e003c0018001f001900a000f800100"),),
    "flower": (
        (0.6, 1.0, "03c01ff87ffe7fff7ffe7fff7fff7ffe0ff003c000807cbe3ffe1ff801800080"),
        (0.58, 1.0, "618273c77fffffffffffffff7fff7ffe3ffc07f001801d9c1ff80ff807f00180"),
    ),
    "umbrella": ((1.0, 0.98, "01800ff01ff83ffc7ffe7ffeffffddbb00000000000000000000000000000000"),),
    "lighthouse": ((0.46, 1.0, "01c007f00ff807f01ffc0ff80ff81ff81ffc1ffc3ffc3ffe3ffe7ffe7fff7fff"),),
    "rock": ((1.0, 0.66, "008007e00ff01ff81ff83ffc7ffc7ffc7ffe7ffe7ffeffffffff7fff7fff3ffe"),),
    "fence": ((1.0, 0.54, "481249926db6edb7ffffffffffffffffffffffffffffffffffffffffffffffff"),),
    "mountain": (
        (1.0, 0.72, "000000c000c001e001e003f00bf00ff01ff81ff83ffc3ffc3ffe7ffe7ffeffff"),
        (1.0, 0.62, "000004000c000e000e201e301f701f781ff83ff83ffc3ffc7ffe7ffe7ffeffff"),
    ),
    "snowman": ((0.66, 1.0, "03e007e007e00ff00ff01ff81ff80ff00ff01ffc3ffc3ffc3ffc3ffc1ff803e0"),),
    "cactus": ((0.72, 1.0, "03c003c007e007e607eff7eff7fffffffffeffe007e007e007e007e007e007e0"),),
    "mushroom": ((0.96, 1.0, "07e00ff01ffc3ffc7ffe7ffeffffffffffff7ffe1ff803c003c007e007e003c0"),),
    "star": ((1.0, 0.96, "00000180018003c003c01ff8ffff7ffe3ffc1ff80ff01ff81ff81ff81c381008"),),
}
