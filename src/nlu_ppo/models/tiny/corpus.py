"""The text that the tiny model learns from: an endless, seeded stream of documents.

Two sorts: plain sentences about a small world, and prompts in the layout that `Prompter` renders, with
and without demonstrations, about concepts that are not the toy tasks. In a good part of the prompts the
answer words mean nothing, so that only the demonstrations tell which word stands for what: that is what
few-shot prompting needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random

from nlu_ppo.models.tiny.claims import ACTIVITIES
from nlu_ppo.models.tiny.concepts import CONCEPTS, LATE, Concept, opinion, subject
from nlu_ppo.prompting import CLOSE, OPEN
from nlu_ppo.tasks.toy_words import (
    ANTONYMS,
    COLOURS,
    DAYS,
    KIND_OF,
    NAMES,
    PERSON_ANTONYMS,
    RELATIVES,
    WHOLE_OF,
    article,
    plural,
    sentence,
    words,
)

# Answer words without any tie to a concept. The words of the toy tasks are among them, to be read and
# copied: no document uses them for what they mean there.
ARBITRARY = words(
    "Alpha Beta Gamma Delta Foo Bar Baz Red Blue Green North South East West Circle Square Triangle Left "
    "Right Apple Lemon Gold Silver Iron Copper Sun Moon Star River Stone Cloud King Queen Knight Ace Club"
    " Heart Spade Zebra Tiger Eagle Winter Summer Spring Autumn Monday Friday One Two Three Four Xylo "
    "Yonder Zeta Omega Kilo Lima Tango Coral Amber "
    "Jade Pearl Onyx Topaz Maple Birch Cedar Willow Paper Glass Wood Metal Wool Cotton Salt Pepper Sugar "
    "Honey Piano Drum Flute Harp Paris Rome Oslo Cairo Quito"
)
STORIES, COPYING = 0.03, 0.05  # shares of the stream
ARBITRARY_FROM, ARBITRARY_SHARE = 0.35, 0.4
LEADS = ("", "", "", "Please help. ", "Careful now. ", "A small exercise. ", "Work alone. ")
GLOSSARY = (
    "Positive means good, and negative means bad.",
    "A contradiction is a pair of sentences that cannot both be true.",
    "Entailment means that one sentence follows from another.",
    "Neutral means neither for nor against.",
    "The premise comes first, and the hypothesis is judged by it.",
    "A review tells what a customer thinks of a thing.",
    "Read what is written, and judge how it ends up.",
    "A verdict relates to what a customer has seen.",
    "A hypothesis can follow from a premise, or contradict it, or neither.",
    "Some people work in the school, while others work in the house.",
    "He works on the farm and comes home late; she came home late, too.",
    "Nobody did say that the present had been paid for.",
    "He feels tired, while she has a friend there.",
    "My friend had to buy and pay for a present; to me it was new.",
    "All this happened when we went there last week.",
    "Overall means taken as a whole.",
)


# -- plain sentences --------------------------------------------------------------------------------------


def world_sentence(rng: Random) -> str:
    """One plain sentence about how words hang together."""
    noun, word, name = rng.choice(list(KIND_OF)), rng.choice(list(ANTONYMS)), rng.choice(NAMES)
    trait, part, day = rng.choice(list(PERSON_ANTONYMS)), rng.choice(list(WHOLE_OF)), rng.choice(DAYS)
    good = rng.random() < 0.5
    thing = subject(rng)
    feeling = rng.choice(
        ("smiled", "was happy", "will come back") if good else ("frowned", "was sad", "left early")
    )
    done = rng.choice(ACTIVITIES[rng.choice(list(ACTIVITIES))])
    return rng.choice(
        (
            f"{sentence(article(noun))[:-1]} is {article(KIND_OF[noun])}.",
            f"All {plural(noun)} are {plural(KIND_OF[noun])}.",
            f"What is {word} is not {ANTONYMS[word]}.",
            f"The opposite of {trait} is {PERSON_ANTONYMS[trait]}.",
            f"The {part} is a part of the {WHOLE_OF[part]}.",
            f"{name} {feeling}, because {opinion(rng, thing, good)}.",
            f"{sentence(opinion(rng, thing, good))[:-1]}, so {name} {feeling}.",
            f"On {day} {name} bought {article(rng.choice(COLOURS))} {noun}.",
            f"On {day} {name} {done} with a {rng.choice(RELATIVES)}.",
            f"{name}'s {noun} is {word}, not {ANTONYMS[word]}.",
            rng.choice(GLOSSARY),
        )
    )


def story(rng: Random) -> str:
    """A paragraph of world sentences."""
    return " ".join(world_sentence(rng) for _ in range(rng.randint(3, 8)))


# -- prompts ----------------------------------------------------------------------------------------------


def copying(rng: Random) -> str:
    """Look-up exercises: which word belongs to the asked one? Answers are dense here, and finding an earlier
    case of the same sort is the skill that demonstrations appeal to."""
    pool = NAMES if rng.random() < 0.5 else tuple(KIND_OF)
    keys = rng.sample(pool, rng.randint(2, 6))
    meaning = dict(zip(keys, rng.choices(ARBITRARY, k=len(keys)), strict=True))
    blocks = [_format_line(rng, sorted(set(meaning.values())))]
    if rng.random() < 0.3:
        blocks.insert(0, " ".join(f"{key}: {word}." for key, word in meaning.items()))
    blocks += [f"{key}\n{OPEN}{meaning[key]}{CLOSE}" for key in rng.choices(keys, k=rng.randint(6, 16))]
    return "\n\n".join(blocks)


def _format_line(rng: Random, words: list[str]) -> str:
    shown = list(words)
    rng.shuffle(shown)
    return f"Answer with one of these: {', '.join(shown)}. Write it as {OPEN}answer{CLOSE}."


def prompt(rng: Random, concept: Concept, shots: int, arbitrary: bool, late: bool = False) -> str:
    """Instruction, format line, `shots` demonstrations and a query, all of them answered."""
    sets = concept.answers + concept.late if late else concept.answers
    names, ask = rng.choice(concept.names), rng.choice(LEADS) + rng.choice(concept.asks)
    words = rng.sample(ARBITRARY, concept.classes) if arbitrary else list(rng.choice(sets))
    blocks = [f"{ask}\n{_format_line(rng, words)}"]
    labels = [i % concept.classes for i in range(shots + concept.classes)]
    rng.shuffle(labels)
    for label in labels[: shots + 1]:
        fields = concept.make(rng, label)
        query = "\n".join(f"{name}: {text}" for name, text in zip(names, fields, strict=True))
        blocks.append(f"{query}\n{OPEN}{words[label]}{CLOSE}")
    return "\n\n".join(blocks)


def document(rng: Random, shots: Sequence[int], done: float) -> str:
    """The next document of the stream.

    Args:
        shots: numbers of demonstrations to choose from.
        done: the share of the training that lies behind. Concepts enter one after another, and answer words
            without a meaning come last, when there is something that they can stand for.
    """
    kind = rng.random()
    if kind < STORIES:
        return story(rng)
    if kind < STORIES + COPYING:
        return copying(rng)
    concept = rng.choices(CONCEPTS, weights=[c.weight * (done >= c.enters) for c in CONCEPTS])[0]
    count = rng.choice(shots)
    arbitrary = count > 0 and done > ARBITRARY_FROM and rng.random() < ARBITRARY_SHARE
    return prompt(rng, concept, count, arbitrary, late=done >= LATE)


def documents(
    seed: int, shots: Sequence[int] = (0, 4, 8), done: Callable[[], float] = lambda: 1.0
) -> Iterator[str]:
    """An endless stream, the same for the same seed and the same course of `done`."""
    rng = Random(seed)
    while True:
        yield document(rng, shots, done())
