"""A tokenizer in plain Python: the longest word of a list of byte strings that the text goes on with, greedily.

The list is a text file with one entry a line, as a Python literal, the way that some recurrent models publish it.
"""

import ast
import os

from transformers import PreTrainedTokenizer

VOCAB_FILES_NAMES = {"vocab_file": "trie_vocab.txt"}


class TrieTokenizer(PreTrainedTokenizer):
    vocab_files_names = VOCAB_FILES_NAMES
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, eos_token="<|end|>", add_bos_token=False, **kwargs):
        self.words = []
        with open(vocab_file, encoding="utf-8") as file:
            for line in file:
                word = ast.literal_eval(line.strip())
                self.words.append(word.encode() if isinstance(word, str) else word)
        self.ids = {word: index for index, word in enumerate(self.words)}
        self.longest = max(len(word) for word in self.words)
        self.vocab_file = vocab_file
        super().__init__(eos_token=eos_token, **kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        vocab = {word.decode("latin-1"): index for word, index in self.ids.items()}
        vocab.update(self.added_tokens_encoder)
        return vocab

    def _tokenize(self, text, **kwargs):
        data, at, found = text.encode(), 0, []
        while at < len(data):
            for length in range(min(self.longest, len(data) - at), 0, -1):
                if data[at : at + length] in self.ids:
                    found.append(data[at : at + length].decode("latin-1"))
                    at += length
                    break
        return found

    def _convert_token_to_id(self, token):
        return self.ids.get(token.encode("latin-1"))

    def _convert_id_to_token(self, index):
        return self.words[index].decode("latin-1")

    def convert_tokens_to_string(self, tokens):
        return b"".join(token.encode("latin-1", errors="replace") for token in tokens).decode(errors="replace")

    def save_vocabulary(self, save_directory, filename_prefix=None):
        path = os.path.join(save_directory, (filename_prefix + "-" if filename_prefix else "") + "trie_vocab.txt")
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(f"{word!r}\n" for word in self.words)
        return (path,)
