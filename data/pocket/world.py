"""The pocket world: everyday objects, what they are like, and goals that need one such property.

Generated; not PIQA. The questions only take PIQA's form (two solutions to a goal, one of which
works), so that every loss can be tried offline in a minute. Nothing measured here says anything
about PIQA or about a real language model.

A property lists the objects that clearly have it and those where one can argue; every other object
clearly lacks it. Doubtful combinations never occur in a row or in the pretraining text, and
`grade` counts them as wrong. The standard is everyday sense: "too heavy to lift with one hand" is
about 10 kg, "long and stiff" about a metre.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """One physical property and the goals that need it."""

    name: str
    is_so: str  # "A cork <is_so>."
    is_not: str  # "A brick <is_not>."
    has: tuple[str, ...]
    doubtful: tuple[str, ...]
    goals: tuple[str, ...]  # "How do I <goal>?"; all but the last two occur in training pairs


def _names(text: str) -> tuple[str, ...]:
    """The comma-separated names or goals of a table entry, line breaks forgotten."""
    return tuple(" ".join(name.split()) for name in text.split(","))


PROPERTIES: tuple[Property, ...] = (
    Property(
        "fillable",
        "can be filled with water",
        "cannot be filled with water",
        has=_names("""glass jar, wine glass, glass bowl, clear bottle, clear plastic cup, clay bowl,
            iron kettle, iron pot, steel bucket, tin can, stone trough, iron bathtub, wooden bowl,
            wooden barrel, paper cup, rubber boot"""),
        doubtful=_names("""sheet of clear plastic, cardboard box, beach ball, steel pipe, sponge,
            iron stove, steel safe, pair of goggles, bamboo pole, aluminum pole, rubber duck"""),
        goals=_names("""carry soup to the table, bring water to the tent, store milk overnight,
            save the leftover gravy, take lemonade to a neighbor, let the hot tea cool down,
            keep the rest of the paint"""),
    ),
    Property(
        "sharp",
        "is sharp",
        "is not sharp",
        has=_names("""kitchen knife, hand saw, iron nail, steel needle, razor blade, axe,
            pair of scissors, piece of broken glass, steel sword, wooden spear, pitchfork,
            rose thorn, fish hook"""),
        doubtful=_names("""window pane, sheet of clear plastic, matchstick, tin can, iron rod,
            steel pipe, wooden plank, block of clear ice, copper coin, bamboo pole, fishing rod,
            anvil, boulder, piano, iron stove, steel sieve, aluminum pole, wicker basket,
            fishing line"""),
        goals=_names("""make a hole in a paper bag, slit a cardboard lid, open a sealed bag of rice,
            prick a potato before baking it, let the air out of an old football,
            split the skin of a tomato, cut a notch in a bar of soap"""),
    ),
    Property(
        "soft",
        "is soft",
        "is not soft",
        has=_names("""pillow, bath towel, wool blanket, cotton ball, sponge, wool scarf, wool sock,
            cotton shirt, cotton sheet, feather, silk ribbon, paper towel, slice of bread,
            strip of cloth, length of yarn"""),
        doubtful=_names("""hemp rope, shoelace, piece of string, nylon cord, leather strap, mop,
            sack of sand, rubber boot, life jacket, beach ball, rubber duck, newspaper, cork,
            fishing line, wax candle, paper cup, sheet of clear plastic, clear plastic cup,
            cotton bandage, green vine, cardboard box, pair of goggles"""),
        goals=_names("""touch a sore knee without hurting it, stroke a sleeping kitten,
            pad the lid of a jewel box, make a bed for a toy mouse, protect an egg in a lunch box,
            comfort a baby rabbit, cushion a ring in a drawer"""),
    ),
    Property(
        "absorbent",
        "soaks up water",
        "does not soak up water",
        has=_names("""bath towel, wool blanket, cotton ball, sponge, wool scarf, wool sock,
            cotton shirt, cotton sheet, cotton bandage, paper towel, slice of bread,
            strip of cloth, newspaper, mop"""),
        doubtful=_names("""pillow, feather, hemp rope, shoelace, piece of string, length of yarn,
            silk ribbon, brick, concrete block, sack of sand, cardboard box, clay bowl, cork,
            paper cup, leather strap, nylon cord, wicker basket, oak log, wooden plank,
            wooden bowl, wooden barrel, wooden spear, wooden oar, wooden spoon, wooden ladder,
            broomstick, walking stick, bamboo pole, matchstick, life jacket, green vine"""),
        goals=_names("""dry a wet table, clean up spilled milk, get a puddle off the floor,
            dry a muddy dog, remove the water from a sink, take the dew off a bench,
            deal with a coffee spill"""),
    ),
    Property(
        "heavy",
        "is too heavy to lift with one hand",
        "can be lifted with one hand",
        has=_names("""stone trough, iron bathtub, wooden barrel, anvil, boulder, sack of sand,
            concrete block, oak log, steel safe, marble statue, piano, iron stove, millstone"""),
        doubtful=_names("""wooden ladder, window pane, iron pot, wooden plank, block of clear ice,
            steel pipe, iron rod, aluminum pole"""),
        goals=_names("""hold a big tent down in a gale, keep a gate shut against a bull,
            stop a parked truck from rolling, keep cars out of the driveway,
            keep a barn door open in a storm, stop a loose roof sheet from blowing off,
            bar the door against a bear"""),
    ),
    Property(
        "knottable",
        "can be tied in a knot",
        "cannot be tied in a knot",
        has=_names("""wool scarf, cotton sheet, silk ribbon, strip of cloth, cotton bandage,
            hemp rope, shoelace, fishing line, piece of string, nylon cord, leather strap,
            length of yarn, green vine"""),
        doubtful=_names("""bath towel, cotton shirt, wool sock, wool blanket, paper towel,
            sheet of clear plastic, mop, fishing rod, life jacket, pair of goggles, pillow"""),
        goals=_names("""tie a parcel shut, hang a lantern from a branch, bind a bundle of sticks,
            keep a sack closed, hold a rolled map together, tie back a curtain,
            fasten a label to a crate"""),
    ),
    Property(
        "transparent",
        "is see-through",
        "is not see-through",
        has=_names("""glass jar, wine glass, glass bowl, clear bottle, clear plastic cup,
            piece of broken glass, window pane, magnifying glass, sheet of clear plastic,
            block of clear ice, glass marble, pair of goggles"""),
        doubtful=_names("""fishing line, steel sieve, beach ball, wicker basket, cotton bandage,
            silk ribbon, steel pipe, feather, horseshoe, wooden ladder, aluminum pole, bamboo pole,
            life jacket, paper towel"""),
        goals=_names("""watch a candle from behind a shield,
            look at the moon through something solid, see the sky with one eye covered,
            read a sign from behind a screen, keep a flower in view behind a cover,
            watch a beetle from behind a barrier, see a friend with something before my face"""),
    ),
    Property(
        "buoyant",
        "floats on water",
        "does not float on water",
        has=_names("""wooden bowl, wooden barrel, oak log, block of clear ice, cork, rubber duck,
            beach ball, wooden plank, bamboo pole, wooden oar, apple, wax candle, life jacket,
            feather, broomstick, wooden spear, wooden spoon, wooden ladder"""),
        doubtful=_names("""glass jar, wine glass, glass bowl, clear bottle, clear plastic cup,
            clay bowl, iron kettle, iron pot, steel bucket, tin can, stone trough, iron bathtub,
            paper cup, rubber boot, steel needle, razor blade, pitchfork, rose thorn, pillow,
            bath towel, wool blanket, cotton ball, sponge, wool scarf, wool sock, cotton shirt,
            cotton sheet, silk ribbon, paper towel, slice of bread, strip of cloth, length of yarn,
            cotton bandage, newspaper, mop, hemp rope, shoelace, fishing line, piece of string,
            nylon cord, leather strap, green vine, steel safe, piano, sheet of clear plastic,
            pair of goggles, fishing rod, aluminum pole, walking stick, cardboard box, matchstick,
            wicker basket, magnifying glass"""),
        goals=_names("""mark a spot on the lake, send a note across the pond,
            race a friend down the stream, keep a toy frog above the water,
            find out which way the river flows, give a swimmer something to swim after,
            see how far the waves carry a thing"""),
    ),
    Property(
        "fireproof",
        "is not harmed by fire",
        "is harmed by fire",
        has=_names("""clay bowl, iron kettle, iron pot, steel bucket, tin can, iron bathtub,
            iron nail, anvil, iron stove, brick, iron rod, horseshoe, copper coin, steel pipe,
            steel sieve, steel safe"""),
        doubtful=_names("""glass jar, wine glass, glass bowl, clear bottle, stone trough,
            kitchen knife, hand saw, steel needle, razor blade, axe, pair of scissors,
            piece of broken glass, steel sword, pitchfork, fish hook, boulder, sack of sand,
            concrete block, marble statue, millstone, window pane, magnifying glass, glass marble,
            aluminum pole, leather strap, green vine"""),
        goals=_names("""mark the middle of a bonfire, leave a token in the campfire overnight,
            hold down the burning logs, show what flames cannot destroy,
            test a furnace without spoiling anything, leave a sign that outlasts a blaze,
            put something safely on hot coals"""),
    ),
    Property(
        "long and stiff",
        "is long and stiff",
        "is not long and stiff",
        has=_names("""steel sword, wooden spear, pitchfork, wooden plank, bamboo pole, wooden oar,
            broomstick, wooden ladder, iron rod, steel pipe, fishing rod, aluminum pole,
            walking stick"""),
        doubtful=_names("""axe, mop, oak log, piano, window pane, iron bathtub, stone trough,
            hand saw, green vine"""),
        goals=_names("""push a boat away from the dock, knock a ball out of a tree,
            get a hat out of the river, reach a key under the stage, test how deep a pond is,
            ring a bell across a ditch, move a wasp nest from far away"""),
    ),
    Property(
        "burnable",
        "burns well",
        "does not burn well",
        has=_names("""wooden bowl, wooden barrel, paper cup, wooden spear, oak log, wooden plank,
            bamboo pole, wooden oar, broomstick, wooden ladder, walking stick, wax candle,
            newspaper, cardboard box, matchstick, wooden spoon, wicker basket, paper towel"""),
        doubtful=_names("""pillow, bath towel, wool blanket, cotton ball, sponge, wool scarf,
            wool sock, cotton shirt, cotton sheet, feather, silk ribbon, slice of bread,
            strip of cloth, length of yarn, cotton bandage, mop, hemp rope, shoelace, fishing line,
            piece of string, nylon cord, leather strap, green vine, cork, piano, rose thorn,
            pitchfork, axe, life jacket, beach ball, rubber duck, rubber boot, fishing rod,
            sheet of clear plastic, clear plastic cup, pair of goggles, hand saw, kitchen knife,
            magnifying glass, sack of sand"""),
        goals=_names("""start a campfire, keep the stove going at night, warm up a cold cabin,
            make a signal fire on a beach, get some light from a flame, boil tea over an open fire,
            keep wolves away with a blaze"""),
    ),
    Property(
        "magnetic",
        "is pulled by a magnet",
        "is not pulled by a magnet",
        has=_names("""iron kettle, iron pot, steel bucket, tin can, iron bathtub, kitchen knife,
            hand saw, iron nail, steel needle, razor blade, axe, pair of scissors, steel sword,
            pitchfork, fish hook, anvil, steel safe, iron stove, iron rod, horseshoe, steel pipe,
            steel sieve"""),
        doubtful=_names("""piano, fishing rod, wooden barrel, mop, leather strap, concrete block,
            magnifying glass, pair of goggles, wooden ladder, brick, boulder, life jacket"""),
        goals=_names("""see if a magnet still works, give the crane magnet some work,
            show a child what a magnet does, pull a thing along with a magnet,
            play a trick with a hidden magnet, make a magnet snap onto a thing,
            explain magnets to the class"""),
    ),
)

# The same sentences serve every goal, so that a response by itself does not tell what was asked:
# without the question there is no telling right from wrong.
SOLUTIONS = ("Use {}.", "Take {} for that.", "Try it with {}.", "Get {} and use it.", "{} will do.")

UNSEEN_GOALS = 2  # the last goals of every property: never in a training pair
OBJECTS: tuple[str, ...] = tuple(sorted({name for p in PROPERTIES for name in p.has}))


def with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def lacking(prop: Property) -> tuple[str, ...]:
    """The objects that clearly lack the property."""
    return tuple(o for o in OBJECTS if o not in prop.has and o not in prop.doubtful)


def question(goal: str) -> str:
    """The prompt, in the format lm-eval gives a PIQA goal; the response starts with a space."""
    return f"Question: How do I {goal}?\nAnswer:"


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def solution(template: str, name: str) -> str:
    return sentence(template.format(with_article(name)))


_PROPERTY_OF = {question(goal): p for p in PROPERTIES for goal in p.goals}
_OBJECT_IN = {solution(template, name): name for template in SOLUTIONS for name in OBJECTS}


def well_formed(response: str) -> bool:
    """Is the response one whole known sentence, whichever object it names?"""
    return response.strip() in _OBJECT_IN


def grade(prompt: str, response: str) -> bool:
    """Does the response solve the question? Exact: one whole known sentence and a fitting object.

    Spaces around the response do not matter. A prompt from elsewhere raises ValueError.
    """
    if prompt not in _PROPERTY_OF:
        raise ValueError(f"not a question of the pocket world: {prompt!r}")
    return _OBJECT_IN.get(response.strip()) in _PROPERTY_OF[prompt].has


def pocket_reward(prompts: list[str], responses: list[str]) -> list[float]:
    """1 for an answer that the exact grader accepts, else 0: ppo's reward on pocket."""
    return [float(grade(p, r)) for p, r in zip(prompts, responses, strict=True)]
