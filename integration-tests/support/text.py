"""Prompts of an exact number of tokens, from ordinary text."""

from functools import cache

from tokenizers import Tokenizer

#: Written for these tests, in several scripts, so that tokens of many kinds and split characters occur.
CORPUS = """
The harbour wakes before the town does. Nets are folded, engines cough, and somebody always forgets the coffee.
By six the boats are past the breakwater, and the gulls have already decided which of them to follow.
A good map is a kind of promise: it says that the hill will be where the paper puts it, and that the road goes on.
When the promise fails, walkers blame the rain, the printer, or each other, and seldom the mountain.
Count the seeds first, then the rows; 48 rows of 125 seeds make 6000 plants, if the crows can be persuaded.
def area(width, height): return width * height  # the shed is 3.5 by 4.25 metres, and the door opens outwards.
The library lends ladders on Tuesdays. It also lends umbrellas, a telescope, and once, by mistake, the librarian.
Café tables stood on the pavement; naïve pigeons walked between them. Größe, Straße, façade, jalapeño, smörgåsbord.
Москва просыпается медленно. 東京の朝は早い。 서울의 밤은 길다. Η θάλασσα είναι ήσυχη. الطريق طويل.
Weather tomorrow: ☀️ in the morning, 🌧️ after lunch, and by evening 🌈 for those who waited. 👩‍🚀🚀✨
Her grandfather repaired clocks, and kept one that ran backwards so that he could feel younger on Sundays.
If the bridge is closed take the ferry, and if the ferry is closed take a book: one of them will open soon.
Twelve musicians, eleven chairs. The tuba player stood through the whole symphony and never mentioned it.
{"name": "kettle", "watts": 2000, "boils": true, "whistles": null, "colours": ["red", "enamel white", "steel"]}
""".strip()


def text_of_tokens(tokenizer: Tokenizer, num_tokens: int, start: int) -> str:
    """A text that `tokenizer` encodes to exactly `num_tokens` tokens, from near character `start` of the corpus."""
    source = (CORPUS + "\n") * (2 + num_tokens * 8 // len(CORPUS))
    start %= len(CORPUS)
    for begin in range(start, start + 64):
        low, high = 1, min(len(source) - begin, num_tokens * 12 + 8)
        while low < high:
            middle = (low + high) // 2
            if count(tokenizer, source[begin : begin + middle]) < num_tokens:
                low = middle + 1
            else:
                high = middle
        for length in range(max(1, low - 3), low + 4):
            text = source[begin : begin + length]
            if count(tokenizer, text) == num_tokens:
                return text
    raise AssertionError(f"no text of {num_tokens} tokens near {start}")


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


@cache
def spread(number: int, low: int, high: int) -> tuple[int, ...]:
    """`number` lengths from `low` to `high`, many short and a few long, in a fixed mixed order."""
    ratio = high / low
    lengths = [round(low * ratio ** (index / max(1, number - 1))) for index in range(number)]
    return tuple(lengths[(index * 29) % number] for index in range(number))
