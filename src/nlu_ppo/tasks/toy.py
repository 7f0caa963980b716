"""Two generated tasks that need no download: `toy_sentiment` and `toy_nli`.

They are toys, and honest ones: the gold label follows from the sentence by rules of grammar (negation,
contrast, hypernyms, quantifiers), so that counting words doesn't solve them, while a model that learned
the rules can.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache
from random import Random

from nlu_ppo.tasks.record import Example, Kind, Task
from nlu_ppo.tasks.toy_words import (
    ANTONYMS,
    BAD,
    COLOURS,
    DAYS,
    DOMAINS,
    GOOD,
    INTENSIFIERS,
    KIND_OF,
    NAMES,
    NEGATIONS,
    PARTS,
    PERSON_ANTONYMS,
    RELATIVES,
    WHOLE_OF,
    article,
    plural,
    sentence,
)

SIZES = {"train": 4000, "validation": 500, "test": 500}
NEGATIVE, POSITIVE = 0, 1
ENTAILMENT, NEUTRAL, CONTRADICTION = 0, 1, 2

TOY_TASKS: dict[str, Task] = {
    "toy_sentiment": Task(
        name="toy_sentiment",
        benchmark="toy",
        kind=Kind.CLASSIFY,
        instruction="Read what a customer wrote and judge the verdict that it ends up with.",
        template="Review: {text}",
        metrics=("accuracy",),
        labels=("negative", "positive"),
        verbalizers=("Negative", "Positive"),
        sizes=SIZES,
    ),
    "toy_nli": Task(
        name="toy_nli",
        benchmark="toy",
        kind=Kind.CLASSIFY,
        instruction="Judge how the hypothesis relates to the premise.",
        template="Premise: {premise}\nHypothesis: {hypothesis}",
        metrics=("accuracy",),
        labels=("entailment", "neutral", "contradiction"),
        verbalizers=("Entailment", "Neutral", "Contradiction"),
        sizes=SIZES,
    ),
}


# -- sentiment --------------------------------------------------------------------------------------------


def _clause(rng: Random, thing: str, positive: bool) -> str:
    """One opinion on `thing`. A third of them say it by denying the opposite."""
    denied = rng.random() < 0.35
    adjective = rng.choice(GOOD if positive != denied else BAD)
    if denied:
        if rng.random() < 0.3:
            frame = rng.choice(("nobody could call {} {}", "I would not say that {} was {}"))
            return frame.format(f"the {thing}", adjective)
        return f"the {thing} {rng.choice(('was', 'seemed'))} {rng.choice(NEGATIONS)} {adjective}"
    strength = rng.choice(INTENSIFIERS) + " " if rng.random() < 0.5 else ""
    return f"the {thing} {rng.choice(('was', 'seemed', 'felt'))} {strength}{adjective}"


def _aside(rng: Random) -> str:
    """A sentence without any opinion."""
    relative, day = rng.choice(RELATIVES), rng.choice(DAYS)
    return rng.choice(
        (
            f"We went there on a {day}.",
            f"I was there with my {relative}.",
            f"My {relative} had paid for it.",
            f"It was a present for my {relative}.",
            f"All this happened last {day}.",
        )
    )


def _sentiment_text(rng: Random, positive: bool) -> tuple[str, tuple[str, str]]:
    """A review whose verdict is that of its deciding clause; that clause, and one for the opposite verdict."""
    domain = rng.choice(list(DOMAINS))
    first, second = rng.sample(DOMAINS[domain], 2)
    relative = rng.choice(RELATIVES)
    verdict, against = _clause(rng, first, positive), _clause(rng, second, not positive)
    whole, third = _clause(rng, domain, positive), _clause(rng, second, rng.random() < 0.5)
    agree = rng.random() < 0.5
    claimed = _clause(rng, domain, positive == agree)
    shapes = (
        sentence(verdict),
        sentence(f"{against}, but {verdict}"),
        sentence(f"although {against}, {verdict}"),
        sentence(f"{verdict}, although {against}"),
        f"{sentence(against)} {sentence('overall, ' + whole)}",
        f"{sentence(third)} {sentence('overall, ' + whole)}",
        f"{sentence(f'my {relative} said that {against}')} {sentence(f'to me {verdict}')}",
        sentence(f"my {relative} found that {claimed}, and I {'agree' if agree else 'disagree'}"),
    )
    shape = rng.choices(range(len(shapes)), weights=(3, 3, 2, 2, 2, 2, 2, 2))[0]
    text = shapes[shape]
    if rng.random() < 0.4:
        text = f"{_aside(rng)} {text}" if rng.random() < 0.5 else f"{text} {_aside(rng)}"
    decides = {4: whole, 5: whole, 7: f"I {'agree' if agree else 'disagree'} that {claimed}"}.get(
        shape, verdict
    )
    return text, (decides, against)


# -- inference --------------------------------------------------------------------------------------------


def _thing_is(rng: Random, label: int) -> tuple[str, str]:
    """Properties of one thing: hypernyms, antonyms, negation."""
    noun, adjective, colour = rng.choice(list(KIND_OF)), rng.choice(list(ANTONYMS)), rng.choice(COLOURS)
    name = rng.choice(NAMES)
    subject = f"{name}'s {noun}"
    other = rng.choice([a for a in ANTONYMS if a not in (adjective, ANTONYMS[adjective])])
    premise = f"{subject} is {adjective} and {colour}"
    wrong = rng.choice([c for c in COLOURS if c != colour])
    choices: dict[int, tuple[str, ...]] = {
        ENTAILMENT: (
            f"{name}'s {KIND_OF[noun]} is {adjective}",
            f"{name} has {article(KIND_OF[noun])}",
            f"{subject} is not {ANTONYMS[adjective]}",
            f"{subject} is {colour}",
        ),
        NEUTRAL: (
            f"{subject} is {other}",
            f"{subject} is not {other}",
            f"{name} has {article(other)} {rng.choice([n for n in KIND_OF if n != noun])}",
        ),
        CONTRADICTION: (
            f"{subject} is {ANTONYMS[adjective]}",
            f"{subject} is not {rng.choice((adjective, colour))}",
            f"{subject} is {wrong}",
        ),
    }
    return premise, rng.choice(choices[label])


def _quantified(rng: Random, label: int) -> tuple[str, str]:
    """All, some and no members of a group, and the kind that they belong to."""
    noun, adjective, place = rng.choice(list(KIND_OF)), rng.choice(list(ANTONYMS)), rng.choice(list(WHOLE_OF))
    things, kinds = plural(noun), plural(KIND_OF[noun])
    pairs: dict[int, tuple[tuple[str, str, str, str], ...]] = {
        ENTAILMENT: (
            ("all", things, "some", things),
            ("all", kinds, "all", things),
            ("some", things, "some", kinds),
            ("no", kinds, "no", things),
        ),
        NEUTRAL: (
            ("some", things, "all", things),
            ("all", things, "all", kinds),
            ("some", kinds, "some", things),
            ("no", things, "no", kinds),
        ),
        CONTRADICTION: (
            ("all", things, "no", things),
            ("no", things, "some", things),
            ("some", things, "no", things),
            ("no", things, "all", things),
        ),
    }
    q1, s1, q2, s2 = rng.choice(pairs[label])
    tail = f"in the {place} are {adjective}"
    return f"{q1} {s1} {tail}", f"{q2} {s2} {tail}"


def _person_at(rng: Random, label: int) -> tuple[str, str]:
    """Where a person is: parts and wholes, one place at a time."""
    name, part, mood = rng.choice(NAMES), rng.choice(list(WHOLE_OF)), rng.choice(list(PERSON_ANTONYMS))
    whole = WHOLE_OF[part]
    elsewhere = rng.choice([w for w in PARTS if w != whole])
    sibling = rng.choice([p for p in PARTS[whole] if p != part])
    if label == NEUTRAL and rng.random() < 0.5:
        return f"{name} is {mood} and works in the {whole}", f"{name} works in the {part}"
    premise = f"{name} is {mood} and works in the {part}"
    unrelated = rng.choice([m for m in PERSON_ANTONYMS if m not in (mood, PERSON_ANTONYMS[mood])])
    choices: dict[int, tuple[str, ...]] = {
        ENTAILMENT: (
            f"{name} works in the {whole}",
            f"{name} does not work in the {elsewhere}",
            f"{name} is not {PERSON_ANTONYMS[mood]}",
        ),
        NEUTRAL: (f"{name} is {unrelated}", f"{name} is not {unrelated}"),
        CONTRADICTION: (
            f"{name} works in the {elsewhere}",
            f"{name} works in the {sibling}",
            f"{name} does not work in the {part}",
            f"{name} is {PERSON_ANTONYMS[mood]}",
        ),
    }
    return premise, rng.choice(choices[label])


def _two_people(rng: Random, label: int) -> tuple[str, str]:
    """Two people with opposite properties, so that the words alone don't say who has which."""
    first, second = rng.sample(NAMES, 2)
    trait = rng.choice(list(PERSON_ANTONYMS))
    opposite = PERSON_ANTONYMS[trait]
    premise = f"{first} is {trait}, while {second} is {opposite}"
    unrelated = rng.choice([m for m in PERSON_ANTONYMS if m not in (trait, opposite)])
    stranger = rng.choice([n for n in NAMES if n not in (first, second)])
    choices: dict[int, tuple[str, ...]] = {
        ENTAILMENT: (f"{first} is {trait}", f"{second} is {opposite}", f"{second} is not {trait}"),
        NEUTRAL: (f"{stranger} is {trait}", f"{first} is {unrelated}", f"{second} is not {unrelated}"),
        CONTRADICTION: (f"{first} is {opposite}", f"{second} is {trait}", f"{second} is not {opposite}"),
    }
    return premise, rng.choice(choices[label])


def _bought(rng: Random, label: int) -> tuple[str, str]:
    """Details that are dropped (entailed), added (open) or denied."""
    name, noun = rng.choice(NAMES), rng.choice(list(KIND_OF))
    colour, day = rng.choice(COLOURS), rng.choice(DAYS)
    kind = KIND_OF[noun]
    if label == NEUTRAL and rng.random() < 0.5:
        return (
            f"{name} bought {article(kind)} on {day}",
            rng.choice((f"{name} bought {article(noun)}", f"{name} bought {article(colour)} {kind}")),
        )
    premise = f"{name} bought {article(colour)} {noun} on {day}"
    wrong = rng.choice([c for c in COLOURS if c != colour])
    choices: dict[int, tuple[str, ...]] = {
        ENTAILMENT: (f"{name} bought {article(noun)}", f"{name} bought {article(kind)} on {day}"),
        NEUTRAL: (
            f"{name} bought {article(rng.choice(list(ANTONYMS)))} {noun}",
            f"{name} has {article(rng.choice([n for n in KIND_OF if n != noun]))}",
        ),
        CONTRADICTION: (
            f"{name} did not buy {article(kind)}",
            f"{name} bought nothing on {day}",
            f"the {noun} that {name} bought is {wrong}",
        ),
    }
    return premise, rng.choice(choices[label])


_FAMILIES: tuple[Callable[[Random, int], tuple[str, str]], ...] = (
    _thing_is,
    _quantified,
    _person_at,
    _two_people,
    _bought,
)


def _inference_pair(rng: Random, label: int) -> tuple[str, str, tuple[str, str]]:
    """Premise, hypothesis, and what decides between them: both without anything about somebody else."""
    premise, hypothesis = decides = rng.choice(_FAMILIES)(rng, label)
    premise, hypothesis = sentence(premise), sentence(hypothesis)
    if rng.random() < 0.5:  # a second sentence about somebody else changes nothing
        stranger = rng.choice([n for n in NAMES if n not in premise and n not in hypothesis])
        extra = sentence(
            rng.choice(
                (
                    f"{stranger} came home late on {rng.choice(DAYS)}",
                    f"{stranger} has {article(rng.choice(RELATIVES))} in the {rng.choice(list(PARTS))}",
                    f"{stranger} feels {rng.choice(list(PERSON_ANTONYMS))}",
                )
            )
        )
        premise = f"{extra} {premise}" if rng.random() < 0.5 else f"{premise} {extra}"
    return premise, hypothesis, decides


# -- splits -----------------------------------------------------------------------------------------------


def _fields(name: str, rng: Random, label: int) -> tuple[dict[str, str], tuple[str, str]]:
    """The fields of an example, and what its analysis speaks of."""
    if name == "toy_sentiment":
        text, decides = _sentiment_text(rng, label == POSITIVE)
        return {"text": text}, decides
    premise, hypothesis, decides = _inference_pair(rng, label)
    return {"premise": premise, "hypothesis": hypothesis}, decides


def _labels(rng: Random, classes: int, size: int) -> Iterator[int]:
    """As many of each class as of any other (one more at most), in random order."""
    labels = [i % classes for i in range(size)]
    rng.shuffle(labels)
    return iter(labels)


@cache
def _splits(name: str) -> tuple[dict[str, tuple[Example, ...]], dict[str, tuple[str, str]]]:
    """All splits in one go, so that the first field (review, premise) is unique over all of them; and by example
    what decides its label."""
    rng = Random(zlib.crc32(name.encode()))  # not hash(): that one differs between processes
    seen: set[str] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    deciding: dict[str, tuple[str, str]] = {}
    for split, size in SIZES.items():
        examples: list[Example] = []
        for i, label in enumerate(_labels(rng, len(TOY_TASKS[name].labels), size)):
            fields, decides = _fields(name, rng, label)
            while next(iter(fields.values())) in seen:
                fields, decides = _fields(name, rng, label)
            seen.add(next(iter(fields.values())))
            examples.append(Example(id=f"{split}-{i}", fields=fields, label=label, idx=i, task=name))
            deciding[f"{split}-{i}"] = decides
        splits[split] = tuple(examples)
    return splits, deciding


def generate(task_name: str, split: str) -> list[Example]:
    """The examples of a toy task: always the same ones, labels balanced, no text in two splits.

    Raises:
        KeyError: no such toy task or split.
    """
    if task_name not in TOY_TASKS:
        raise KeyError(f"no toy task {task_name!r}: choose from {', '.join(TOY_TASKS)}")
    if split not in SIZES:
        raise KeyError(f"toy tasks have no split {split!r}: choose from {', '.join(SIZES)}")
    return list(_splits(task_name)[0][split])


_LINKS = {ENTAILMENT: "so", NEUTRAL: "which leaves open whether", CONTRADICTION: "which rules out that"}


def toy_rationale(example: Example, label: int) -> str:
    """Why an example of a toy task has a label: the words that decide it, as its generator put them.

    For a wrong label it argues for that: with a clause of the opposite verdict, or by drawing the wrong conclusion.
    """
    first, second = _splits(example.task)[1][example.id]
    if example.task == "toy_sentiment":
        return first if label == example.label else second
    return f"{first}, {_LINKS[label]} {second}"
