"""Short English stories from a probabilistic grammar whose entropy is known.

A story is drawn through a `Draw`, which sums the log-probability of every choice.
The number of sentences is drawn first; the opening names the people and the
place; each later sentence is of one of the kinds that the state of the story
allows.  Kinds have fixed words of their own and no list holds a word twice, so a
text has exactly one derivation and the sum is the log-probability of the text.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Sequence, TypeVar

T = TypeVar("T")

GIRLS = """Mira Anna Lena Clara Ruth Ella Nora Ida Vera Sara Julia Emma Maria Eva Lucy Alice Helen Rosa Jane Mary
Olga Petra Tessa Wilma Yara Zoe Amy Beth Cora Dora Edith Fiona Greta Hanna Iris Joan Kate Lily Mona Nina
Olive Paula Rita Stella Tina Una Viola Wendy Agnes Bella Daisy Elsa Flora Gina Hazel Irma Jenny Klara Laura Molly""".split()
BOYS = """Tom Ben Karl Peter Paul Jack Max Leo Otto Felix Hugo Adam Oscar Simon David Mark John James Henry George
Anton Boris Conrad Dennis Edgar Frank Gustav Harold Ivan Jonas Kevin Lars Martin Noah Oliver Philip Quentin Robert Stefan Theo
Ulrich Victor Walter Xavier Yuri Albert Bruno Carl Daniel Erik Fred Gerald Hans Igor Jacob Kurt Louis Milo Nils Oskar""".split()
NAMES = GIRLS + BOYS

ROLES = "baker farmer teacher sailor painter gardener fisherman doctor singer miller hunter student tailor shepherd".split()
MOODS = "kind young old clever quiet brave shy cheerful lazy careful patient curious".split()
TIMES = ["One morning", "One evening", "One day", "On Sunday", "After lunch", "Before dinner", "Last summer", "In the spring"]

# Each place with its own spots, so that a spot always fits the place.
PLACES: dict[str, list[str]] = {
    "garden": ["old apple tree", "rose bush", "wooden bench", "stone wall"],
    "forest": ["tall oak", "fallen log", "mossy rock", "little stream"],
    "market": ["fruit stand", "big fountain", "fish stall", "flower cart"],
    "beach": ["blue boat", "high dune", "broken pier", "white lighthouse"],
    "library": ["long shelf", "round table", "dusty lamp", "narrow stairs"],
    "farm": ["red barn", "hay cart", "chicken house", "deep well"],
    "harbour": ["grey ship", "iron anchor", "fishing net", "customs house"],
    "mountain": ["snowy peak", "dark cave", "wooden hut", "goat path"],
    "school": ["back door", "green board", "music room", "climbing frame"],
    "station": ["ticket office", "old clock", "last platform", "waiting room"],
}
# Each object with adjectives that fit and something that one does with it.
OBJECTS: dict[str, tuple[list[str], list[str]]] = {
    "apple": (["red", "green", "sweet"], ["ate it slowly", "cut it in half"]),
    "cake": (["warm", "sweet", "huge"], ["ate it slowly", "shared it with everyone"]),
    "book": (["thick", "old", "torn"], ["read it twice", "opened it at once"]),
    "letter": (["long", "sealed", "torn"], ["read it twice", "hid it in a pocket"]),
    "lamp": (["golden", "broken", "tiny"], ["lit it carefully", "cleaned it with a cloth"]),
    "coin": (["golden", "silver", "shiny"], ["hid it in a pocket", "threw it into the air"]),
    "key": (["rusty", "silver", "tiny"], ["hid it in a pocket", "cleaned it with a cloth"]),
    "ball": (["red", "round", "wet"], ["threw it into the air", "kicked it far away"]),
    "kite": (["red", "torn", "huge"], ["let it fly", "painted it blue"]),
    "drum": (["round", "old", "huge"], ["played it loudly", "painted it blue"]),
    "flute": (["silver", "wooden", "thin"], ["played it softly", "cleaned it with a cloth"]),
    "hat": (["wet", "black", "soft"], ["put it on", "brushed it clean"]),
    "basket": (["wooden", "heavy", "empty"], ["carried it home", "filled it with flowers"]),
    "stone": (["round", "heavy", "shiny"], ["kicked it far away", "painted it blue"]),
}
ANIMALS = "dog cat fox owl goat horse rabbit crow duck hedgehog".split()
ANIMAL_ACTS = ["slept in the sun", "looked for food", "ran in circles", "watched them quietly", "hid in the grass"]
WEATHER = ["rain", "snow", "hail", "thunder"]
SAYINGS = [
    "What a lovely day",
    "I am so hungry",
    "I have never seen this before",
    "We should come back tomorrow",
    "Please help me",
    "Look at that",
    "It is getting late",
    "I like this place",
]
FEELINGS = "happy tired proud sad hungry excited thankful surprised".split()
MEALS = ["soup", "bread and cheese", "fresh fish", "hot tea", "apple pie", "roasted nuts"]
PREPOSITIONS = ["under", "behind", "beside", "near"]


@dataclass
class Draw:
    """A seeded random source that sums the log-probability of what it drew."""

    rng: random.Random
    logp: float = 0.0

    def one(self, options: Sequence[T]) -> T:
        self.logp -= math.log(len(options))
        return options[int(self.rng.random() * len(options))]

    def weighted(self, options: Sequence[tuple[T, float]]) -> T:
        total = sum(w for _, w in options)
        x = self.rng.random() * total
        for value, w in options:
            x -= w
            if x < 0:
                break
        self.logp += math.log(w / total)
        return value


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


@dataclass
class Story:
    """What has been said so far, as far as later sentences depend on it."""

    hero: str
    he: str
    place: str
    friend: str = ""
    thing: str = ""  # the object, once found
    owner: str = ""  # who has it: hero or friend
    used: bool = False
    animal: str = ""
    weather: bool = False
    rested: bool = False


def person(d: Draw, but: str = "") -> str:
    """A name other than `but`, all alike likely."""
    return d.one([n for n in NAMES if n != but] if but else NAMES)


def pronoun(name: str) -> str:
    return "she" if name in GIRLS else "he"


def opening(d: Draw, hero: str | None) -> tuple[str, Story]:
    kind = d.weighted([("was", 0.35), ("time", 0.4), ("with", 0.25)])
    if kind == "was":  # the name comes first
        name = hero or person(d)
        text = f"{name} was {article(d.one(MOODS))} {d.one(ROLES)} who often went to the "
        friend = ""
    else:
        text = d.one(TIMES) + ", "
        name = hero or person(d)
        text += name
        friend = person(d, name) if kind == "with" else ""
        text += f" and {friend} met at the " if friend else " walked to the "
    place = d.one(list(PLACES))
    return text + place + ".", Story(name, pronoun(name), place, friend)


def sentence(d: Draw, s: Story) -> str:
    """The next sentence: one of the kinds that fit, then its words."""
    he = s.he
    kinds: list[tuple[str, float]] = [("say", 1.0)]
    if not s.thing:
        kinds.append(("find", 4.0))
    else:
        if not s.used and s.owner == s.hero:
            kinds.append(("use", 2.0))
        if s.friend and s.owner == s.hero:
            kinds.append(("give", 1.5))
        kinds.append(("feel", 1.0))
    if not s.friend:
        kinds.append(("meet", 2.0))
    if not s.animal:
        kinds.append(("animal", 1.5))
    else:
        kinds.append(("act", 1.5))
    if not s.weather:
        kinds.append(("weather", 0.7))
    if not s.rested:
        kinds.append(("rest", 0.7))
    kind = d.weighted(kinds)

    if kind == "find":
        s.thing, s.owner = d.one(list(OBJECTS)), s.hero
        adjective = d.one(OBJECTS[s.thing][0])
        return f"{he.capitalize()} found {article(adjective)} {s.thing} {d.one(PREPOSITIONS)} the {d.one(PLACES[s.place])}."
    if kind == "use":
        s.used = True
        return f"{s.hero} took the {s.thing} and {d.one(OBJECTS[s.thing][1])}."
    if kind == "give":
        s.owner = s.friend
        return f"{s.hero} gave the {s.thing} to {s.friend}, who {d.one(['smiled', 'laughed', 'bowed', 'said nothing'])}."
    if kind == "feel":
        return f"The {s.thing} made {s.owner} very {d.one(FEELINGS)}."
    if kind == "meet":
        s.friend = person(d, s.hero)
        return f"There {he} met {s.friend}, {article(d.one(MOODS))} {d.one(ROLES)}."
    if kind == "animal":
        s.animal = d.one(ANIMALS)
        return f"{article(s.animal).capitalize()} came out from {d.one(PREPOSITIONS)} the {d.one(PLACES[s.place])}."
    if kind == "act":
        return f"The {s.animal} {d.one(ANIMAL_ACTS)}."
    if kind == "weather":
        s.weather = True
        return f"Suddenly the {d.one(WEATHER)} began."
    if kind == "rest":
        s.rested = True
        who = "They" if s.friend else he.capitalize()
        return f"{who} sat down and had some {d.one(MEALS)}."
    speaker = d.one([s.hero, s.friend]) if s.friend else s.hero
    return f'"{d.one(SAYINGS)}," said {speaker}.'


def ending(d: Draw, s: Story) -> str:
    who, were = ("they both", "were") if s.friend else (s.he, "was")
    return f"At last {who} went home and {were} {d.one(FEELINGS)}."


def story(rng: random.Random, hero: str | None = None, lengths: Sequence[int] = (3, 4, 5, 6, 7)) -> tuple[list[str], float]:
    """Sentences of a story and its log-probability in nats."""
    d = Draw(rng)
    n = d.one(lengths)
    first, state = opening(d, hero)
    out = [first] + [sentence(d, state) for _ in range(n - 2)]
    out.append(ending(d, state))
    return out, d.logp
