"""What the tiny model learns to tell apart: each concept generates fields of text together with their class.

None of these is a toy task: subjects, sentence frames, field names and answer words differ. What they
have in common with the toy tasks is English: negation, contrast, hypernyms, opposites, quantifiers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from nlu_ppo.models.tiny.claims import TOPICS, Fields, claim, group_claim, refuted, scene, supported
from nlu_ppo.tasks.toy_words import (
    ANTONYMS,
    BAD,
    DAYS,
    DOMAINS,
    GOOD,
    INTENSIFIERS,
    KIND_OF,
    KINDS,
    NAMES,
    NEGATIONS,
    PERSON_ANTONYMS,
    WHOLE_OF,
    article,
    sentence,
    words,
)


@dataclass(frozen=True)
class Concept:
    """A classification that can be asked for in many wordings.

    Attributes:
        make: writes the text(s) of one item of the given class.
        names: sets of field names, one of which a document uses.
        asks: wordings of the instruction.
        answers: sets of answer words in the order of the classes.
        late: further sets, for the last part of the training, once the thing itself is known.
        weight: how often it comes, once it has come in.
        enters: at which share of the training it comes in. Words and single clauses come first: a small
            model learns them within minutes, and what is built on them only then.
    """

    make: Callable[[Random, int], Fields]
    names: tuple[Fields, ...]
    asks: tuple[str, ...]
    answers: tuple[Fields, ...]
    weight: float = 0.3
    enters: float = 0.3
    late: tuple[Fields, ...] = ()

    @property
    def classes(self) -> int:
        return len(self.answers[0])


EVENTS = words(
    "morning afternoon party walk lesson match picnic meeting journey visit dinner holiday weekend "
    "rehearsal swim"
)
THINGS = sorted({thing for things in DOMAINS.values() for thing in things})

# -- mood -------------------------------------------------------------------------------------------------


def opinion(rng: Random, thing: str, good: bool) -> str:
    """`the picnic was not boring`: an opinion, direct or by denial."""
    denied = rng.random() < 0.35
    adjective = rng.choice(GOOD if good != denied else BAD)
    verb = rng.choice(("was", "was", "is", "looked", "seemed", "felt"))
    if not denied:
        strength = rng.choice(INTENSIFIERS) + " " if rng.random() < 0.4 else ""
        return f"{thing} {verb} {strength}{adjective}"
    if rng.random() < 0.25:
        frame = rng.choice(("nobody found {} {}", "I would not call {} {}", "I do not think {} was {}"))
        return frame.format(thing, adjective)
    return f"{thing} {verb} {rng.choice(NEGATIONS)} {adjective}"


def subject(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"the {rng.choice(EVENTS)}"
    # Reviews of the toy task write `the`: with another word no sentence can be one of theirs.
    return f"{rng.choice(('this', 'that', 'our'))} {rng.choice(THINGS)}"


def diary(rng: Random, mood: int) -> Fields:
    """A diary entry that ends up bad (0) or good (1)."""
    good = bool(mood)
    end, against = opinion(rng, subject(rng), good), opinion(rng, subject(rng), not good)
    name, day = rng.choice(NAMES), rng.choice(DAYS)
    agree = rng.random() < 0.5
    said = opinion(rng, subject(rng), good == agree)
    shape = rng.choice(
        (
            sentence(end),
            sentence(end),
            f"{sentence(against)} Yet {end}.",
            sentence(f"{against}, but {end}"),
            sentence(f"{against}, but in the end {end}"),
            sentence(f"although {against}, {end}"),
            sentence(f"{end}, although {against}"),
            sentence(f"{end} even if {against}"),
            f"{sentence(against)} All in all, {end}.",
            sentence(f"{name} thought that {against}, but I found that {end}"),
            sentence(f"{name} said that {said}, and I {'agree' if agree else 'disagree'}"),
        )
    )
    opening = rng.choice((f"{day}. ", f"Dear diary. {day}. ", f"With {name} again. ", "", ""))
    return (opening + shape,)


def clause_mood(rng: Random, mood: int) -> Fields:
    """A single opinion."""
    return (sentence(opinion(rng, subject(rng), bool(mood))),)


def word_mood(rng: Random, mood: int) -> Fields:
    """A single adjective."""
    return (rng.choice(GOOD if mood else BAD),)


def denial(rng: Random, denied: int) -> Fields:
    """Does the sentence deny something?"""
    adjective = rng.choice((*GOOD, *BAD, *ANTONYMS))
    middle = rng.choice(NEGATIONS if denied else INTENSIFIERS)
    return (sentence(f"{subject(rng)} was {middle} {adjective}"),)


# -- subjects ---------------------------------------------------------------------------------------------


def topic_of(first: int, count: int) -> Callable[[Random, int], Fields]:
    def make(rng: Random, index: int) -> Fields:
        return (scene(rng, TOPICS[first + index]),)

    assert first + count <= len(TOPICS)
    return make


def same_topic(rng: Random, same: int) -> Fields:
    one, other = rng.sample(TOPICS, 2)
    return scene(rng, one), scene(rng, one if same else other)


def mentions_animal(rng: Random, present: int) -> Fields:
    animals = KINDS["animal"]
    noun = rng.choice(animals if present else [n for n in KIND_OF if n not in animals])
    return (sentence(f"{rng.choice(NAMES)} saw {article(noun)} near the {rng.choice(list(WHOLE_OF))}"),)


def kind_of_word(rng: Random, index: int) -> Fields:
    return (rng.choice(KINDS[("animal", "vehicle", "fruit")[index]]),)


def kind_of_word2(rng: Random, index: int) -> Fields:
    return (rng.choice(KINDS[("tool", "instrument", "flower")[index]]),)


def opposites(rng: Random, index: int) -> Fields:
    """Opposite (0) or unrelated (1) words."""
    table = rng.choice((ANTONYMS, PERSON_ANTONYMS))
    one = rng.choice(list(table))
    if index == 0:
        return one, table[one]
    return one, rng.choice([w for w in table if w not in (one, table[one])])


def is_kind(rng: Random, index: int) -> Fields:
    """Does the first word belong to the kind that the second names?"""
    noun = rng.choice(list(KIND_OF))
    kind = KIND_OF[noun] if index else rng.choice([k for k in KINDS if k != KIND_OF[noun]])
    return noun, kind


def tense(rng: Random, future: int) -> Fields:
    topic, name = rng.choice(TOPICS), rng.choice(NAMES)
    if future:
        return (f"Next {rng.choice(DAYS)} {name} will meet people about {topic}.",)
    return (f"Last {rng.choice(DAYS)} {name} met people about {topic}.",)


# -- all of them ------------------------------------------------------------------------------------------

# Sets with words that no other concept uses come first in learning; yes and no need the instruction read.
YES_NO: tuple[Fields, ...] = (("No", "Yes"), ("Wrong", "Right"))
MOODS: tuple[Fields, ...] = (
    ("Bad", "Good"),
    ("Sad", "Happy"),
    ("Blame", "Praise"),
    ("Frown", "Smile"),
)
LATE = 0.75  # the share of the training after which `late` answer words come in
# Words that a toy task asks for, with their everyday meaning, on single words only, and seldom: the model knows
# what they mean and has hardly ever had to use them.
SIGNS: tuple[Fields, ...] = (("Negative", "Positive"),)
TRUTHS: tuple[Fields, ...] = (
    ("True", "Unknown", "False"),
    ("Supported", "Open", "Refuted"),
    ("Follows", "Unclear", "Clashes"),
)
# Again a toy task's words, on claims about groups only.
RELATIONS: tuple[Fields, ...] = (("Entailment", "Neutral", "Contradiction"),)

CONCEPTS: tuple[Concept, ...] = (
    Concept(
        diary,
        (("Diary",), ("Entry",), ("Note",), ("Text",)),
        (
            "Was it a good day for the writer of this diary?",
            "Find out in what mood the day ends.",
            "Tell how the writer feels after all.",
            "Sort these entries by mood.",
        ),
        MOODS,
        3.0,
        0.05,
    ),
    Concept(
        clause_mood,
        (("Sentence",), ("Remark",), ("Text",)),
        ("Is this remark praise or blame?", "Tell praise from blame.", "Does the speaker like it?"),
        MOODS,
        0.8,
        0.0,
    ),
    Concept(
        word_mood,
        (("Word",),),
        ("Is it a kind word?", "Sort the words by mood."),
        MOODS,
        0.3,
        0.0,
        SIGNS,
    ),
    Concept(
        claim,
        (("Passage", "Claim"), ("Text", "Statement"), ("Report", "Sentence"), ("Facts", "Guess")),
        (
            "Is the claim true, going by the passage alone?",
            "Check the second text against the first.",
            "Does the first text support the second?",
            "Sort the claims by what the text says.",
        ),
        TRUTHS,
        8.0,
        0.05,
    ),
    Concept(
        group_claim,
        (("Passage", "Claim"), ("Facts", "Guess")),
        ("How does the claim stand to the passage?", "Is the guess sound, going by the facts?"),
        RELATIONS,
        1.2,
        LATE,
    ),
    Concept(
        supported,
        (("Passage", "Claim"), ("Text", "Line")),
        ("Does the claim follow from the passage?",),
        (("Doubtful", "Proven"), *YES_NO),
        0.8,
        0.3,
    ),
    Concept(
        refuted,
        (("Passage", "Claim"), ("Text", "Line")),
        ("Is the claim at odds with the passage?",),
        (("Tolerated", "Excluded"), *YES_NO),
        0.8,
        0.3,
    ),
    Concept(
        denial,
        (("Sentence",), ("Text",)),
        ("Does the sentence deny something?", "Look for a denial."),
        (("Plain", "Denied"), *YES_NO),
    ),
    Concept(
        topic_of(0, 3),
        (("Text",), ("News",)),
        ("What is the text about?", "Name the topic."),
        (("Sport", "Cooking", "Music"),),
    ),
    Concept(
        topic_of(3, 3),
        (("Text",), ("News",)),
        ("What is the text about?", "Name the topic."),
        (("Travel", "School", "Gardening"),),
    ),
    Concept(
        same_topic,
        (("Text A", "Text B"), ("One", "Two")),
        ("Are both about the same thing?",),
        (("Different", "Same"), *YES_NO),
    ),
    Concept(
        mentions_animal,
        (("Sentence",), ("Text",)),
        ("Does an animal occur here?", "Look for an animal."),
        (("Lifeless", "Beast"), *YES_NO),
    ),
    Concept(
        kind_of_word,
        (("Word",),),
        ("What is it?", "Sort the words."),
        (("Animal", "Vehicle", "Fruit"),),
        0.3,
        0.0,
    ),
    Concept(
        kind_of_word2,
        (("Word",),),
        ("What is it?", "Sort the words."),
        (("Tool", "Instrument", "Flower"),),
        0.3,
        0.0,
    ),
    Concept(
        opposites,
        (("First", "Second"),),
        ("How do the two words relate?",),
        (("Opposite", "Unrelated"), ("Against", "Apart")),
        0.7,
        0.05,
    ),
    Concept(
        is_kind,
        (("Word", "Kind"),),
        ("Is it one of that kind?",),
        (("Outside", "Member"), *YES_NO),
        0.7,
        0.05,
    ),
    Concept(
        tense,
        (("Text",),),
        ("When does this take place?",),
        (("Past", "Future"), ("Before", "Later")),
    ),
)
