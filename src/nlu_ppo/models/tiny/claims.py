"""Passages with claims about them, and plain scenes: the part of the tiny model's text that is about what
follows."""

from __future__ import annotations

from random import Random

from nlu_ppo.tasks.toy_words import (
    ANTONYMS,
    COLOURS,
    DAYS,
    KIND_OF,
    NAMES,
    PARTS,
    PERSON_ANTONYMS,
    WHOLE_OF,
    article,
    plural,
    sentence,
)

Fields = tuple[str, ...]

ACTIVITIES: dict[str, tuple[str, ...]] = {
    "sport": ("scored a goal", "ran a race", "trained with the team", "won the match"),
    "cooking": ("baked bread", "tasted the soup", "chopped an onion", "fried an egg"),
    "music": ("played the violin", "sang in the choir", "tuned the piano", "wrote a song"),
    "travel": ("boarded the train", "packed a suitcase", "crossed the border", "missed the flight"),
    "school": ("wrote the exam", "did the homework", "asked the teacher", "learned a poem"),
    "gardening": ("watered the tulips", "planted a rose", "cut the grass", "dug with a spade"),
}
TOPICS = tuple(ACTIVITIES)


def scene(rng: Random, topic: str) -> str:
    """Somebody did something that belongs to the topic."""
    return sentence(f"{rng.choice(NAMES)} {rng.choice(ACTIVITIES[topic])} on {rng.choice(DAYS)}")


# Classes: 0 the passage says so, 1 it leaves it open, 2 it says otherwise.


def _claim_state(rng: Random, truth: int) -> tuple[str, str]:
    """What something is like."""
    noun, word, colour = rng.choice(list(KIND_OF)), rng.choice(list(ANTONYMS)), rng.choice(COLOURS)
    kind, opposite, name = KIND_OF[noun], ANTONYMS[word], rng.choice(NAMES)
    other = rng.choice([w for w in ANTONYMS if w not in (word, opposite)])
    wrong = rng.choice([c for c in COLOURS if c != colour])
    fact = rng.choice(
        (f"{name} sold {article(word)} {colour} {noun}", f"{name} found {article(word)} {colour} {noun}")
    )
    verb = fact.split()[1]
    claims = (
        (
            f"what {name} {verb} was {word}",
            f"the {noun} was {colour}",
            f"{name} {verb} {article(kind)}",
            f"{name} {verb} {article(colour)} {noun}",
            f"the {kind} was not {opposite}",
        ),
        (
            f"the {noun} was {other}",
            f"what {name} {verb} was not {other}",
            f"{name} also {verb} {article(rng.choice([n for n in KIND_OF if n != noun]))}",
        ),
        (
            f"the {noun} was {wrong}",
            f"the {noun} was {opposite}",
            f"what {name} {verb} was not {rng.choice((word, colour))}",
            f"{name} never {verb} {article(kind)}",
            f"{name} {verb} nothing",
        ),
    )
    return fact, rng.choice(claims[truth])


def group_claim(rng: Random, truth: int) -> tuple[str, str]:
    """Quantified groups and their kinds."""
    noun, word, name = rng.choice(list(KIND_OF)), rng.choice([*ANTONYMS, *COLOURS]), rng.choice(NAMES)
    things, kinds = plural(noun), plural(KIND_OF[noun])
    every, some, none = rng.choice(
        (("all", "some", "no"), ("all", "some", "no"), ("all the", "a few", "none of the"))
    )
    pairs = (
        (
            (every, things, some, things),
            (every, kinds, every, things),
            (some, things, some, kinds),
            (none, kinds, none, things),
        ),
        (
            (some, things, every, things),
            (every, things, every, kinds),
            (some, kinds, some, things),
            (none, things, none, kinds),
        ),
        (
            (every, things, none, things),
            (none, things, some, things),
            (some, things, none, things),
            (none, things, every, things),
        ),
    )
    q1, s1, q2, s2 = rng.choice(pairs[truth])
    tail = rng.choice((f"that {name} saw were {word}", f"of {name} are {word}", f"at the market are {word}"))
    return f"{q1} {s1} {tail}", f"{q2} {s2} {tail}"


def _claim_place(rng: Random, truth: int) -> tuple[str, str]:
    """Where somebody sleeps, waits or sings."""
    name, part = rng.choice(NAMES), rng.choice(list(WHOLE_OF))
    does, do = rng.choice((("waits", "wait"), ("sleeps", "sleep"), ("sings", "sing"), ("is", "be")))
    whole = WHOLE_OF[part]
    elsewhere = rng.choice([w for w in PARTS if w != whole])
    sibling = rng.choice([p for p in PARTS[whole] if p != part])
    no = "is not" if does == "is" else f"does not {do}"
    if truth == 1:
        return f"{name} {does} in the {whole}", rng.choice(
            (
                f"{name} {does} in the {part}",
                f"{name} {no} in the {part}",
                f"{name} {does} there every {rng.choice(DAYS)}",
            )
        )
    yes = (
        f"{name} {does} in the {whole}",
        f"{name} {no} in the {elsewhere}",
        f"{name} {no} in the {sibling}",
    )
    wrong = (
        f"{name} {does} in the {elsewhere}",
        f"{name} {does} in the {sibling}",
        f"{name} {no} in the {part}",
        f"{name} {no} in the {whole}",
    )
    return f"{name} {does} in the {part}", rng.choice(wrong if truth else yes)


def _claim_people(rng: Random, truth: int) -> tuple[str, str]:
    """Who has which of two properties."""
    one, two = rng.sample(NAMES, 2)
    word = rng.choice(list(PERSON_ANTONYMS))
    opposite = PERSON_ANTONYMS[word]
    other = rng.choice([w for w in PERSON_ANTONYMS if w not in (word, opposite)])
    third = rng.choice([n for n in NAMES if n not in (one, two)])
    fact = rng.choice(
        (f"{one} looks {word} and {two} looks {opposite}", f"{one} looks {word}, but {two} looks {opposite}")
    )
    claims = (
        (
            f"{one} looks {word}",
            f"{two} looks {opposite}",
            f"{one} does not look {opposite}",
            f"{two} does not look {word}",
        ),
        (
            f"{one} looks {other}",
            f"{two} does not look {other}",
            f"{third} looks {rng.choice((word, opposite))}",
        ),
        (
            f"{one} looks {opposite}",
            f"{two} looks {word}",
            f"{one} does not look {word}",
            f"{two} does not look {opposite}",
        ),
    )
    return fact, rng.choice(claims[truth])


CLAIMS = (_claim_state, group_claim, _claim_place, _claim_people)


def claim(rng: Random, truth: int) -> Fields:
    """A passage and a claim about it."""
    fact, said = rng.choice(CLAIMS)(rng, truth)
    passage = sentence(fact)
    if rng.random() < 0.35:
        extra = scene(rng, rng.choice(TOPICS))
        passage = f"{extra} {passage}" if rng.random() < 0.5 else f"{passage} {extra}"
    return passage, sentence(said)


def supported(rng: Random, yes: int) -> Fields:
    return claim(rng, 0 if yes else rng.choice((1, 2)))


def refuted(rng: Random, yes: int) -> Fields:
    return claim(rng, 2 if yes else rng.choice((0, 1)))
