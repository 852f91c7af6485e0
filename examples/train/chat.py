"""Chat turns with exact answers: what is asked, what is known, what the system message changes.

An answer exists in two forms, a sentence and a short form (one word or number).
A system message holds up to two instructions, and each is a function of these
forms, so every combination of instruction and question has one right answer.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field
from typing import Callable

import english

Message = dict[str, str]
TOWNS = "Oakham Brimley Farwick Holden Mossley Lindon Ashby Westrow Calder Norwick Elmton Dunmore".split()
COLOURS = "red blue green yellow black white brown orange purple pink grey golden".split()
PETS = "dog cat rabbit parrot hamster horse goat duck turtle canary".split()
MODEL_NAME = "Dot"

COLOUR_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "a lemon": "yellow", "coal": "black", "blood": "red",
    "an orange": "orange", "chocolate": "brown", "the sun": "yellow", "milk": "white", "a tomato": "red", "a frog": "green",
    "the sea": "blue", "a carrot": "orange", "a raven": "black", "a banana": "yellow", "a pig": "pink", "an elephant": "grey",
    "a strawberry": "red", "a leaf": "green", "the night": "black", "a cloud": "white", "a plum": "purple", "wood": "brown",
}  # fmt: skip
SOUND_OF = {
    "cow": "moo", "dog": "woof", "cat": "meow", "sheep": "baa", "duck": "quack", "pig": "oink", "lion": "roar",
    "owl": "hoot", "bee": "buzz", "frog": "croak", "snake": "hiss", "mouse": "squeak", "horse": "neigh", "crow": "caw",
}  # fmt: skip
CHILD_OF = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "duck": "duckling", "pig": "piglet",
    "goat": "kid", "bear": "cub", "hen": "chick", "frog": "tadpole", "goose": "gosling",
}  # fmt: skip
LEGS_OF = {
    "dog": 4, "spider": 8, "bird": 2, "ant": 6, "horse": 4, "fish": 0, "snake": 0, "cat": 4, "bee": 6, "cow": 4, "duck": 2,
    "table": 4, "fly": 6, "beetle": 6, "hen": 2,
}  # fmt: skip
OPPOSITES = [p.split("/") for p in """hot/cold big/small day/night up/down left/right old/young fast/slow happy/sad open/closed full/empty
light/dark rich/poor hard/soft wet/dry early/late high/low long/short near/far good/bad black/white clean/dirty strong/weak
loud/quiet true/false first/last yes/no love/hate buy/sell begin/end win/lose inside/outside above/below sweet/sour thick/thin
north/south east/west king/queen always/never""".split()]  # fmt: skip
OPPOSITE_OF = {a: b for a, b in OPPOSITES} | {b: a for a, b in OPPOSITES}
CAPITAL_OF = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "England": "London", "Japan": "Tokyo",
    "China": "Beijing", "Russia": "Moscow", "Greece": "Athens", "Egypt": "Cairo", "Norway": "Oslo", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Austria": "Vienna",
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
UNKNOWN_VERBS = "build paint repair find cook sell open catch write clean draw plant steer fix learn make".split()
UNKNOWN_NOUNS = """rocket car boat house computer phone radio train piano bridge clock city planet star river movie song poem king
president war engine recipe number law price church museum tiger whale island country language film game book""".split()

WORDS = "Ahoy Listen Well Indeed Friend Hurrah Sure Behold Captain Hark Greetings Certainly Wow Hey Right Alas Gladly Look".split()
ENDS = "please indeed friend captain stop over dear thanks amen sir madam cheers always really truly maybe".split()
TITLES = "Captain Doctor Professor Sir Madam Boss Chief Master Major Friend".split()
PERSONAS = [n for n in english.NAMES if n not in ("May", "Dot")]


@dataclass
class Answer:
    full: str
    short: str
    numeric: bool = False
    about_name: bool = False  # an answer that a persona changes


@dataclass
class Style:
    """One instruction: its words, and what it makes of the running text."""

    text: str
    apply: Callable[[str, Answer], str]
    rank: int  # choice of the form first, then additions, then the case of letters
    numeric: bool = False
    persona: str = ""


def one_word(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def before_stop(text: str, tail: str) -> str:
    stop = text[-1] if text[-1] in ".!?" else ""
    return text[: len(text) - len(stop)] + tail + stop


def make_style(rng: random.Random) -> Style:
    kind = rng.randrange(9)
    if kind == 0:
        text = rng.choice(["Answer in capital letters.", "Write everything in capital letters.", "Use only capital letters."])
        return Style(text, lambda s, a: s.upper(), 2)
    if kind == 1:
        text = rng.choice(["Answer in small letters.", "Write everything in small letters."])
        return Style(text, lambda s, a: s.lower(), 2)
    if kind in (2, 3):
        w = rng.choice(WORDS)
        text = rng.choice([f"Begin every answer with the word {w}.", f"Start each answer with {w}."])
        return Style(text, lambda s, a: f"{w}, {s}", 1)
    if kind == 4:
        w = rng.choice(ENDS)
        text = rng.choice([f"End every answer with the word {w}.", f"End with the word {w}."])
        return Style(text, lambda s, a: before_stop(s, f", {w}"), 1)
    if kind == 5:
        w = rng.choice(TITLES)
        text = rng.choice([f"Call the user {w}.", f"Always call me {w}."])
        return Style(text, lambda s, a: before_stop(s, f", {w}"), 1)
    if kind == 6:
        text = rng.choice(["Answer in one word.", "Answer with one word only.", "Use only one word."])
        return Style(text, lambda s, a: one_word(a.short), 0)
    if kind == 7:
        text = rng.choice(["Answer only with a number.", "Give only the number."])
        return Style(text, lambda s, a: a.short, 0, numeric=True)
    n = rng.choice(PERSONAS)
    text = rng.choice([f"Your name is {n}.", f"Speak of yourself as {n}.", f"You are {n}."])
    return Style(text, lambda s, a: s, 0, persona=n)


def make_system(rng: random.Random) -> tuple[str, list[Style]]:
    """No system message, an empty one in effect, or one or two instructions."""
    x = rng.random()
    if x < 0.30:
        return "", []
    if x < 0.36:
        return rng.choice(["You are a helpful assistant.", "Be helpful.", "You are a friendly assistant."]), []
    styles = [make_style(rng)]
    if x > 0.80:
        other = make_style(rng)
        # Two choices of one kind (case and case, form and form) have no right answer.
        if other.rank != styles[0].rank and not (other.numeric or styles[0].numeric):
            styles.append(other)
    return " ".join(s.text for s in styles), styles


def styled(styles: list[Style], a: Answer) -> str:
    text = a.full
    for s in sorted(styles, key=lambda s: s.rank):
        if s.persona and a.about_name:
            text, a = a.full.replace(MODEL_NAME, s.persona), Answer(a.full, s.persona, about_name=True)
        text = s.apply(text, a)
    return text


@dataclass
class Memory:
    """What the user has said in this chat: topic to value."""

    said: dict[str, str] = field(default_factory=dict)


def fact_question(rng: random.Random) -> tuple[str, Answer]:
    """A question about the world."""
    kind = rng.randrange(9)
    if kind == 0:
        x = rng.choice(list(COLOUR_OF))
        c = COLOUR_OF[x]
        q = rng.choice([f"What colour is {x}?", f"What color is {x}?", f"Tell me the colour of {x}."])
        return q, Answer(f"{x[0].upper() + x[1:]} is {c}.", c)
    if kind == 1:
        x = rng.choice(list(SOUND_OF))
        q = rng.choice([f"What does a {x} say?", f"What sound does a {x} make?"])
        return q.replace("a owl", "an owl"), Answer(f"The {x} says {SOUND_OF[x]}.", SOUND_OF[x])
    if kind == 2:
        x = rng.choice(list(CHILD_OF))
        q = rng.choice([f"What is a young {x} called?", f"What do you call a young {x}?", f"What is a baby {x}?"])
        return q, Answer(f"A young {x} is called {english.article(CHILD_OF[x])}.", CHILD_OF[x])
    if kind == 3:
        x = rng.choice(list(LEGS_OF))
        n = LEGS_OF[x]
        q = f"How many legs does {english.article(x)} have?"
        return q, Answer(f"{english.article(x).capitalize()} has {n} legs.", str(n), numeric=True)
    if kind in (4, 5):
        x = rng.choice(list(OPPOSITE_OF))
        q = rng.choice([f"What is the opposite of {x}?", f"Tell me the opposite of {x}.", f"What is the contrary of {x}?"])
        return q, Answer(f"The opposite of {x} is {OPPOSITE_OF[x]}.", OPPOSITE_OF[x])
    if kind == 6:
        x = rng.choice(list(CAPITAL_OF))
        q = rng.choice([f"What is the capital of {x}?", f"Tell me the capital of {x}."])
        return q, Answer(f"The capital of {x} is {CAPITAL_OF[x]}.", CAPITAL_OF[x])
    if kind == 7:
        ring = rng.choice([DAYS, MONTHS])
        word, i, back = "day" if ring is DAYS else "month", rng.randrange(len(ring)), rng.random() < 0.5
        y = ring[(i - 1 if back else i + 1) % len(ring)]
        where = "before" if back else "after"
        return f"What {word} comes {where} {ring[i]}?", Answer(f"{y} comes {where} {ring[i]}.", y)
    n = rng.randrange(1, 99)
    m, where = (n + 1, "after") if rng.random() < 0.5 else (n - 1, "before")
    return f"What number comes {where} {n}?", Answer(f"{m} comes {where} {n}.", str(m), numeric=True)


def sum_held_out(a: int, b: int) -> bool:
    """A tenth of the unordered pairs never occurs in training."""
    return hashlib.sha256(f"{min(a, b)}+{max(a, b)}".encode()).digest()[0] % 10 == 0


def addends(rng: random.Random, held_out: bool = False) -> tuple[int, int]:
    while True:
        a, b = rng.randrange(100), rng.randrange(100)
        if sum_held_out(a, b) == held_out:
            return a, b


def sum_question(rng: random.Random) -> tuple[str, Answer]:
    a, b = addends(rng)
    q = rng.choice([f"What is {a}+{b}?", f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Add {a} and {b}.", f"{a}+{b}", f"{a}+{b}=?"])
    return q, Answer(f"{a}+{b}={a + b}.", str(a + b), numeric=True)


def small_talk(rng: random.Random) -> tuple[str, Answer]:
    talk: list[tuple[list[str], Answer]] = [
        (["Hello", "Hello!", "Hi", "Hi!", "Hey", "Hello there!", "Good morning!", "Hi there", "Good evening."],
         Answer("Hello! How can I help you?", "hello")),
        (["How are you?", "How are you today?", "How do you do?", "Are you well?"], Answer("I am well, thank you.", "well")),
        (["Thank you.", "Thanks!", "Thank you very much!", "Thanks", "Great, thanks."], Answer("You are welcome.", "welcome")),
        (["Goodbye.", "Bye!", "Bye", "See you later.", "Good night!"], Answer("Goodbye!", "goodbye")),
        (["What can you do?", "Help", "Help me.", "How can you help me?", "What do you know?", "What are you good at?"],
         Answer("I can add two numbers, remember what you tell me and tell stories.", "adding")),
        (["Are you a human?", "Are you a robot?", "What are you?", "Are you a computer?", "Are you an AI?"],
         Answer("I am a small language model.", "model")),
        (["Who made you?", "Who built you?", "Where do you come from?"], Answer("I was trained on two small processors.", "processors")),
        (["How old are you?", "When were you born?"], Answer("I am as young as my weights.", "young")),
    ]  # fmt: skip
    name = (["What is your name?", "Who are you?", "Tell me your name.", "What are you called?", "Do you have a name?", "Introduce yourself."],
            Answer(f"My name is {MODEL_NAME}.", MODEL_NAME, about_name=True))  # fmt: skip
    asked, answer = rng.choice(talk + [name] * 5)
    return rng.choice(asked), answer


def unknown_question(rng: random.Random) -> tuple[str, Answer]:
    v, n, m = rng.choice(UNKNOWN_VERBS), rng.choice(UNKNOWN_NOUNS), rng.choice(UNKNOWN_NOUNS)
    q = rng.choice([
        f"How do I {v} a {n}?", f"Who invented the {n}?", f"Why is the {n} so big?", f"What is a {n}?", f"Where can I {v} a {n}?",
        f"When did the {n} begin?", f"Explain the {n} to me.", f"Can you {v} a {n}?", f"Write a {n} about a {m}.", f"What is the best {n}?",
        f"Which {n} has the largest {m}?", f"Do you like the {n}?", f"Should I {v} the {n} or the {m}?", f"Who wrote the {n}?",
        f"Is there a {n} in the {m}?", f"What do you think about the {n}?", f"Please {v} the {n}.",
    ])  # fmt: skip
    return q, Answer("I am sorry, I do not know that.", "unknown")


# Topic: how it is told, the reply to that, how it is asked, and the answer.
TOPICS: dict[str, tuple[list[str], list[str], list[str], str]] = {
    "name": (english.NAMES, ["My name is {}.", "I am {}.", "Call me {}."], ["What is my name?", "Who am I?", "Do you remember my name?"], "Your name is {}."),
    "colour": (COLOURS, ["My favourite colour is {}.", "I like the colour {}."],
               ["What is my favourite colour?", "Which colour do I like?"], "Your favourite colour is {}."),
    "town": (TOWNS, ["I live in {}.", "My home is in {}."], ["Where do I live?", "Where is my home?"], "You live in {}."),
    "pet": (PETS, ["I have a {}.", "My pet is a {}."], ["What pet do I have?", "What is my pet?"], "Your pet is a {}."),
    "job": (english.ROLES, ["I am a {}.", "I work as a {}."], ["What is my job?", "What do I do for a living?"], "You are a {}."),
    "number": ([], ["My secret number is {}.", "Remember the number {}."], ["What is my secret number?", "Which number did I tell you?"], "Your number is {}."),
}  # fmt: skip


def tell(rng: random.Random, memory: Memory) -> tuple[str, Answer]:
    topic = rng.choice(list(TOPICS))
    values, told, _, _ = TOPICS[topic]
    v = rng.choice(values) if values else f"{rng.randrange(10000):04d}"
    memory.said[topic] = v
    reply = f"Nice to meet you, {v}." if topic == "name" else "I will remember that."
    return rng.choice(told).format(v), Answer(reply, v if topic == "name" else "noted")


def ask_back(rng: random.Random, memory: Memory) -> tuple[str, Answer]:
    topic = rng.choice(list(TOPICS) + list(memory.said) * 4)
    _, _, asked, answer = TOPICS[topic]
    if topic not in memory.said:
        return rng.choice(asked), Answer("You have not told me that.", "unknown")
    v = memory.said[topic]
    return rng.choice(asked), Answer(answer.format(v), v, numeric=topic == "number")


def story_turn(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(english.NAMES) if rng.random() < 0.4 else None
    asks = ["Tell me a story.", "Tell me a story", "Tell me another story.", "I want to hear a story.", "Can you tell a story?", "Write a short story."]
    ask = rng.choice([f"Tell me a story about {name}.", f"Write a story about {name}."]) if name else rng.choice(asks)
    return ask, " ".join(english.story(rng, name, (3, 4, 5))[0])


def held_out(system: str, question: str) -> bool:
    """A tenth of the combinations of a system message and a question is never trained on."""
    return bool(system) and hashlib.sha256(f"{system}|{question}".encode()).digest()[0] % 10 == 0


def next_turn(rng: random.Random, styles: list[Style], memory: Memory) -> tuple[str, Answer]:
    if any(s.numeric for s in styles):
        while True:
            q, a = rng.choice([sum_question, fact_question, sum_question])(rng)
            if a.numeric:
                return q, a
    if any(s.persona for s in styles) and rng.random() < 0.35:
        while True:
            q, a = small_talk(rng)
            if a.about_name:
                return q, a
    x = rng.random()
    if x < 0.34:
        return fact_question(rng)
    if x < 0.54:
        return sum_question(rng)
    if x < 0.66:
        return small_talk(rng)
    if x < 0.80 or (not memory.said and x < 0.93):
        return tell(rng, memory)
    if x < 0.95:
        return ask_back(rng, memory)
    return unknown_question(rng)


def sloppy(rng: random.Random, q: str) -> str:
    """As people type: now and then without capitals or the final mark."""
    x = rng.random()
    if x < 0.06:
        return q.rstrip("?.!")
    if x < 0.12 and not any(w in q for w in english.NAMES):
        return q.lower() if x < 0.09 else q.lower().rstrip("?.!")
    return q


def conversation(rng: random.Random, turns: int, test: bool = False) -> tuple[str, list[tuple[str, str]]]:
    """System message and (question, answer) turns; in a test all turns but the
    last are as in training, and the last is a held-out combination."""
    while True:
        system, styles = make_system(rng)
        memory, out = Memory(), []
        for i in range(turns):
            last = test and i == turns - 1
            if not styles and not last and rng.random() < 0.06:
                out.append(story_turn(rng))
                continue
            q, a = next_turn(rng, styles, memory)
            if held_out(system, q) != last:
                if last:
                    break
                continue
            out.append((q if last else sloppy(rng, q), styled(styles, a)))
        if len(out) == turns if test else out:
            return system, out
