"""The words of the toy world: shared by the toy tasks and by the text that the tiny model learns from.

The tiny model can only understand words that it has met, so both draw on one lexicon; sentences and
prompt wordings are not shared.
"""

from __future__ import annotations


def words(text: str) -> tuple[str, ...]:
    """The words of a text, as a tuple."""
    return tuple(text.split())


GOOD = words(
    "wonderful great excellent lovely superb delightful brilliant pleasant charming impressive fine enjoyable"
)
BAD = words("awful terrible dreadful poor horrible dull disappointing weak unpleasant annoying boring sloppy")
NEGATIONS = ("not", "never", "hardly", "not at all", "far from", "anything but")
INTENSIFIERS = ("very", "really", "truly", "quite", "so", "rather", "simply")

DOMAINS: dict[str, tuple[str, ...]] = {
    "hotel": ("room", "staff", "breakfast", "bed", "pool", "view"),
    "film": ("plot", "acting", "music", "ending", "script", "cast"),
    "restaurant": ("soup", "service", "waiter", "menu", "dessert", "bread"),
    "phone": ("battery", "screen", "camera", "sound", "design"),
    "book": ("story", "style", "cover", "hero", "ending", "language"),
    "concert": ("singer", "band", "hall", "sound", "choir"),
    "museum": ("guide", "shop", "garden", "collection", "tour"),
    "course": ("teacher", "material", "pace", "classroom", "exam"),
    "cruise": ("cabin", "crew", "food", "deck", "weather"),
    "game": ("graphics", "music", "story", "control", "puzzle"),
}

KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "rabbit", "goat", "duck"),
    "vehicle": ("car", "bus", "bicycle", "truck", "tram"),
    "fruit": ("apple", "pear", "plum", "banana", "lemon"),
    "tool": ("hammer", "saw", "spade", "drill"),
    "instrument": ("violin", "piano", "flute", "drum"),
    "flower": ("rose", "tulip", "daisy", "lily"),
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
IRREGULAR = {"bus": "buses", "daisy": "daisies", "lily": "lilies"}

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
ANTONYMS = {
    "old": "new",
    "heavy": "light",
    "clean": "dirty",
    "wet": "dry",
    "hot": "cold",
    "big": "small",
    "expensive": "cheap",
    "strong": "fragile",
}
ANTONYMS.update({b: a for a, b in list(ANTONYMS.items())})
PERSON_ANTONYMS = {
    "tall": "short",
    "young": "elderly",
    "happy": "sad",
    "awake": "asleep",
    "rich": "broke",
    "healthy": "ill",
    "busy": "idle",
    "brave": "afraid",
}
PERSON_ANTONYMS.update({b: a for a, b in list(PERSON_ANTONYMS.items())})

PARTS: dict[str, tuple[str, ...]] = {
    "house": ("kitchen", "bedroom", "attic", "cellar"),
    "school": ("classroom", "canteen", "gym"),
    "farm": ("barn", "stable", "orchard"),
    "station": ("ticket office", "waiting room", "platform"),
    "hospital": ("ward", "pharmacy", "laboratory"),
}
WHOLE_OF = {part: whole for whole, parts in PARTS.items() for part in parts}

NAMES = words(
    "Anna Tom Maria Paul Lena Omar Julia Ben Nina Karl Sara Leo Emma Hugo Ida Max Rosa Finn Clara Ali Eva"
    " Jonas"
)
RELATIVES = ("brother", "sister", "cousin", "mother", "father", "uncle", "aunt", "friend", "neighbour")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def article(noun: str) -> str:
    """`a dog`, `an apple`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def plural(noun: str) -> str:
    """`dogs`, `buses`."""
    return IRREGULAR.get(noun, noun + "s")


def sentence(text: str) -> str:
    """First letter upper case, the rest untouched, with a full stop."""
    return text[0].upper() + text[1:] + "."
