"""The 45 animals of the paper's prompts (the list is DDPO's, arXiv 2305.13301) and their emoji."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PROMPTS_FILE = ASSETS / "prompts.txt"
SPRITES = Path(__file__).resolve().parent / "sprites"
SPRITE_SETS = ("noto", "fluent_3d", "fluent_flat", "twemoji")

#: Unicode code points of each animal; the second, where there is one, is another view (face and whole animal).
CODE_POINTS: dict[str, tuple[int, ...]] = {
    "cat": (0x1F408, 0x1F431),
    "dog": (0x1F415, 0x1F436),
    "horse": (0x1F40E, 0x1F434),
    "monkey": (0x1F412, 0x1F435),
    "rabbit": (0x1F407, 0x1F430),
    "zebra": (0x1F993,),
    "spider": (0x1F577,),
    "bird": (0x1F426,),
    "sheep": (0x1F411,),
    "deer": (0x1F98C,),
    "cow": (0x1F404, 0x1F42E),
    "goat": (0x1F410,),
    "lion": (0x1F981,),
    "tiger": (0x1F405, 0x1F42F),
    "bear": (0x1F43B,),
    "raccoon": (0x1F99D,),
    "fox": (0x1F98A,),
    "wolf": (0x1F43A,),
    "lizard": (0x1F98E,),
    "beetle": (0x1FAB2,),
    "ant": (0x1F41C,),
    "butterfly": (0x1F98B,),
    "fish": (0x1F41F, 0x1F420),
    "shark": (0x1F988,),
    "whale": (0x1F40B, 0x1F433),
    "dolphin": (0x1F42C,),
    "squirrel": (0x1F43F,),
    "mouse": (0x1F401, 0x1F42D),
    "rat": (0x1F400,),
    "snake": (0x1F40D,),
    "turtle": (0x1F422,),
    "frog": (0x1F438,),
    "chicken": (0x1F414,),
    "duck": (0x1F986,),
    "goose": (0x1FABF,),
    "bee": (0x1F41D,),
    "pig": (0x1F416, 0x1F437),
    "turkey": (0x1F983,),
    "fly": (0x1FAB0,),
    "llama": (0x1F999,),
    "camel": (0x1F42A, 0x1F42B),
    "bat": (0x1F987,),
    "gorilla": (0x1F98D,),
    "hedgehog": (0x1F994,),
    "kangaroo": (0x1F998,),
}
ANIMALS: tuple[str, ...] = tuple(CODE_POINTS)


def sprite_names() -> list[tuple[str, str]]:
    """(set, file stem) of every sprite, e.g. ("noto", "cat_2"): 4 sets of 57."""
    return [
        (s, a if i == 0 else f"{a}_{i + 1}") for s in SPRITE_SETS for a in ANIMALS for i in range(len(CODE_POINTS[a]))
    ]
