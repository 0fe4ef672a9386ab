"""Prompts of ordinary text in mixed lengths, the same every time for the same seed."""

import random

_PARAGRAPHS = (
    "The old railway line closed in the sixties, but its bridges were built for another century and refused to "
    "fall down. Cyclists found it first. They came on Sundays with sandwiches, lifting their bicycles over the "
    "fallen trees, until somebody in the council noticed that a road without cars already existed and needed only "
    "gravel and signs. Ten years later the stations sell coffee again.",
    "To bake bread without kneading, mix four cups of flour with two teaspoons of salt, a quarter teaspoon of yeast "
    "and two cups of water. Cover the bowl and leave it alone until the next day. Time does what hands would have "
    "done: the proteins find each other, the dough becomes elastic, and the flavour deepens. Bake it in a hot covered "
    "pot for half an hour, then uncover it until the crust is the colour of a chestnut.",
    "A compiler reads a program three times over, in a way. First it looks at the letters and finds words; then at the "
    "words and finds sentences; then at the sentences and asks whether they mean anything. Only after that does it "
    "begin to translate, and most of its cleverness goes into noticing work that need not be done at all.",
    "Octopuses have three hearts, and two of them stop when the animal swims, which may be why it prefers to "
    "walk. Most of its neurons sit in its arms. An arm can taste what it touches and decide to let go before "
    "the brain has heard of the matter, so that an octopus is perhaps less like a person with eight arms than "
    "like a small committee.",
    "Dear neighbours, the lift will be out of service from Monday the 4th to Friday the 8th while its cables are "
    "replaced. If you need help with shopping or with a pram, write your flat number on the list beside the letter "
    "boxes; the students on the second floor have kindly offered their legs. The work begins at 8:00 and is loud.",
    "In 1854 a physician drew a map of a few streets in London and marked on it every death from cholera. The marks "
    "gathered around one pump. He could not see the cause, and nobody would have believed a description of it, but "
    "the map was enough: the handle of the pump was removed, and the argument about how diseases travel had changed.",
    "Sailors used to measure speed with a rope. A piece of wood was thrown from the stern, the rope ran out over the "
    "rail, and somebody counted the knots that passed while sand ran through a glass. The rope has been gone for a "
    "century and the knots are still on every chart, because a good unit outlives the tool that made it.",
    "When two glaciers meet they do not mix. Each carries its own dark line of rubble, and for many kilometres the "
    "lines run side by side like lanes of a motorway, so that a stone at the end of the valley can be traced to the "
    "cliff that it fell from. Reading ice is mostly a matter of following lines uphill with enough patience.",
)

_QUESTIONS = (
    "What is the capital of France?",
    "Name three rivers of Europe.",
    "Explain why the sky is blue in one sentence.",
    "Write a short poem about rain.",
    "How do I sort a list in Python?",
    "What should one pack for a day in the mountains?",
    "Summarize the text above.",
    "Continue the text above with one more paragraph.",
)

_SENTENCES = tuple(
    sentence.strip() + "." for paragraph in _PARAGRAPHS for sentence in paragraph.split(".") if len(sentence) > 20
)

_CHARACTERS_PER_TOKEN = 4.6
"""Characters a token of this text with SmolLM2's tokenizer, for lengths that need not be exact."""

NUM_PROMPTS = 128


def chat_prompts(count: int, seed: int) -> list[str]:
    """Prompts of a line to about 600 tokens. All begin differently, with other seeds too, so that no prefix cache
    helps."""
    made = []
    for index in range(count):
        paragraphs = (0, 1, 0, 2, 1, 4, 0, 7)[index % 8]
        first = index * 3 + seed
        text = "\n\n".join(_PARAGRAPHS[(first + i) % len(_PARAGRAPHS)] for i in range(paragraphs))
        made.append(f"Note {seed}.{index + 1}. {text}\n\n{_QUESTIONS[(index * 5) % len(_QUESTIONS)]}\n")
    return made


def question(index: int) -> str:
    """One of eight lines that end a prompt."""
    return _QUESTIONS[index % len(_QUESTIONS)]


def text_of(num_tokens: int, seed: int) -> str:
    """Sentences in an order that depends on the seed: `num_tokens` tokens, within a tenth."""
    order = random.Random(seed)
    parts = [f"Document {seed}."]
    characters = len(parts[0])
    while characters < num_tokens * _CHARACTERS_PER_TOKEN:
        parts.append(_SENTENCES[int(order.random() * len(_SENTENCES))])
        characters += len(parts[-1]) + 1
    return " ".join(parts)


def output_tokens(index: int) -> int:
    """Requested tokens of prompt `index`: 8, 16, … 64, mixed."""
    return 8 * (1 + (index * 5) % 8)
