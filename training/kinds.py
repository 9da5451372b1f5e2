"""What can stand in a scene: kinds of things, their colours, backgrounds and relations.

The order of every table here is part of the data: sprites are numbered by it and random draws index it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of thing; `glyphs` maps a colour word (or "" for a thing without one) to an emoji."""

    name: str
    plural: str
    glyphs: tuple[tuple[str, str], ...]
    recoloured: bool = False


@dataclass(frozen=True, slots=True)
class Sprite:
    """One picture in the atlas: a kind in one colour ("" where the caption names no colour)."""

    kind: Kind
    colour: str
    glyph: str

    @property
    def name(self) -> str:
        """The noun phrase without article, for instance `red apple`."""
        return f"{self.colour} {self.kind.name}".strip()

    @property
    def plural(self) -> str:
        """The plural noun phrase, for instance `red apples`."""
        return f"{self.colour} {self.kind.plural}".strip()


PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (226, 45, 40),
    "orange": (255, 145, 0),
    "yellow": (253, 216, 45),
    "green": (104, 170, 56),
    "blue": (28, 112, 214),
    "purple": (150, 62, 190),
    "pink": (248, 140, 180),
}
"""Colours that recoloured kinds take, as sRGB."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (240, 240, 240),
    "black": (30, 30, 32),
    "grey": (140, 140, 142),
    "red": (196, 52, 48),
    "yellow": (242, 214, 92),
    "green": (84, 156, 84),
    "blue": (66, 112, 200),
    "purple": (120, 70, 170),
    "pink": (244, 172, 200),
    "brown": (122, 84, 58),
}
"""Background colours by name, as the sRGB centre of what the name covers."""

RELATIONS: tuple[str, ...] = ("to the left of", "to the right of", "above", "below")
COUNT_WORDS: tuple[str, ...] = ("a", "two", "three")

_FIXED = """
cat cats 🐱|dog dogs 🐶|fox foxes 🦊|frog frogs 🐸|panda pandas 🐼
pig pigs 🐷|lion lions 🦁|monkey monkeys 🐵|owl owls 🦉|penguin penguins 🐧
bee bees 🐝|ladybug ladybugs 🐞|turtle turtles 🐢|snail snails 🐌|octopus octopuses 🐙
crab crabs 🦀|whale whales 🐳|butterfly butterflies 🦋|elephant elephants 🐘|rabbit rabbits 🐰
duck ducks 🦆|banana bananas 🍌|strawberry strawberries 🍓|pineapple pineapples 🍍|carrot carrots 🥕
pizza pizzas 🍕|doughnut doughnuts 🍩|mushroom mushrooms 🍄|cactus cacti 🌵|sunflower sunflowers 🌻
tree trees 🌳|moon moons 🌙|star stars ⭐|snowman snowmen ⛄|guitar guitars 🎸
drum drums 🥁|bicycle bicycles 🚲|rocket rockets 🚀|airplane airplanes ✈|sailboat sailboats ⛵
key keys 🔑|house houses 🏠|robot robots 🤖|ghost ghosts 👻|camera cameras 📷
hammer hammers 🔨|crown crowns 👑
"""

_HUES = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")


def _kinds() -> tuple[Kind, ...]:
    kinds = []
    for line in _FIXED.replace("\n", "|").strip("|").split("|"):
        name, plural, glyph = line.split()
        kinds.append(Kind(name, plural, (("", glyph),)))
    for name, glyphs in (
        ("heart", "❤🧡💛💚💙💜🤎🖤🤍"),
        ("circle", "🔴🟠🟡🟢🔵🟣🟤⚫⚪"),
        ("square", "🟥🟧🟨🟩🟦🟪🟫⬛⬜"),
    ):
        kinds.append(Kind(name, f"{name}s", tuple(zip(_HUES, glyphs, strict=True))))
    kinds.append(Kind("book", "books", (("red", "📕"), ("green", "📗"), ("blue", "📘"), ("orange", "📙"))))
    kinds.append(Kind("apple", "apples", (("red", "🍎"), ("green", "🍏"))))
    for name, plural, glyph in (
        ("balloon", "balloons", "🎈"),
        ("car", "cars", "🚗"),
        ("umbrella", "umbrellas", "☂"),
        ("shirt", "shirts", "👕"),
        ("dress", "dresses", "👗"),
        ("cap", "caps", "🧢"),
        ("bird", "birds", "🐦"),
        ("backpack", "backpacks", "🎒"),
    ):
        kinds.append(Kind(name, plural, tuple((colour, glyph) for colour in PALETTE), recoloured=True))
    return tuple(kinds)


KINDS: tuple[Kind, ...] = _kinds()
SPRITES: tuple[Sprite, ...] = tuple(Sprite(kind, colour, glyph) for kind in KINDS for colour, glyph in kind.glyphs)
