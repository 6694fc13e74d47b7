"""words: which words an edit is about, and their tokens, with a real CLIP tokenizer that knows a few words."""

from __future__ import annotations

import json

import pytest
from transformers import CLIPTokenizer

from sdsedit.attention.words import changed_words, clause, find_words, removed_words
from sdsedit.prior.base import Tokens

# Whole-word merges for some words only: "teddy", "crowns" and others split into several tokens.
WHOLE = ("a", "cat", "dog", "hat", "with", "and", "blue", "red", "on", "grass", "crown", "top", "bear", "the")
MAX_TOKENS = 24


def byte_alphabet() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes with."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in kept else chr(256 + sum(c not in kept for c in range(b))) for b in range(256)]


@pytest.fixture(scope="module")
def tokenize(tmp_path_factory):
    merges, pieces = [], []
    for word in WHOLE:
        left = word[0] if len(word) > 1 else word + "</w>"
        for i, letter in enumerate(word[1:], start=2):
            right = letter + "</w>" if i == len(word) else letter
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            pieces.append(left)
    alphabet = byte_alphabet()
    entries = dict.fromkeys([*alphabet, *(c + "</w>" for c in alphabet), *pieces, "<|startoftext|>", "<|endoftext|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.json").write_text(json.dumps({entry: i for i, entry in enumerate(entries)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    tokenizer = CLIPTokenizer.from_pretrained(folder)

    def tokens(prompt):
        padded = {"padding": "max_length", "truncation": True, "max_length": MAX_TOKENS}
        coded = tokenizer(prompt, return_offsets_mapping=True, **padded)
        offsets = tuple(tuple(pair) for pair in coded["offset_mapping"])
        cut = prompt[max(stop for _, stop in offsets) :].strip()
        return Tokens(ids=tuple(coded["input_ids"]), offsets=offsets, cut=cut)

    tokens.tokenizer = tokenizer
    return tokens


def spelled(tokenize, prompt, words):
    """What the chosen tokens say, joined: the tokens themselves must spell the chosen words."""
    ids = tokenize(prompt).ids
    pieces = tokenize.tokenizer.convert_ids_to_tokens([ids[i] for i in words.tokens])
    return "".join(pieces).replace("</w>", " ").split()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("a cat", "a cat with a hat", ["hat"]),
        ("a cat", "a cat wearing a hat.", ["hat"]),
        ("a cat", "a dog", ["dog"]),
        ("a cat on grass", "a cat on grass with a teddy-bear", ["teddy-bear"]),
        ("a teddy-bear", "a teddy-bear with a hat", ["hat"]),
        ("a cat", "a cat with two crowns", ["crowns"]),
        ("a cat with a crown", "a cat with two crowns", ["crowns"]),
        ("two cats", "three cats", ["cats"]),
        ("a cat and a dog", "a cat and a cat with a hat", ["cat", "hat"]),
        ("a cat", "a cat in a kimono", ["kimono"]),
        ("a cat", "a cat with a crown on top of its hat", ["crown", "hat"]),
        ("a cat", "a cat in a top hat", ["top", "hat"]),
        ("A Cat", "a cat, with a Hat!", ["Hat"]),
        ("the cat's hat", "the cat and its hat and crown", ["crown"]),
        # adjectives, and the noun that they describe if it stayed
        ("a cat", "a blue cat", ["blue", "cat"]),
        ("a cat on grass", "a blue cat on grass", ["blue", "cat"]),
        ("a red cat on grass", "a blue cat on grass", ["blue", "cat"]),
        ("a cat on grass", "an old grumpy cat on grass", ["old", "grumpy", "cat"]),
        ("a red cat", "a grumpy cat", ["grumpy", "cat"]),
        ("a cat", "a cat in blue", ["blue"]),
        ("a cat", "a blue cat with a red hat", ["blue", "cat", "red", "hat"]),
        ("a cat", "a cat with a blue hat", ["blue", "hat"]),
        ("a cat on grass", "a blue-eyed cat on grass", ["blue-eyed", "cat"]),
        ("grass, cat", "grass, blue, cat", ["blue"]),
        ("cat running fast", "dog running fast", ["dog"]),
        ("cat", "a cat", []),
        # other scripts, accents in both forms, pictographs
        ("a cat", "a cat in a café", ["café"]),
        ("a cat in a café", "a cat in a cafe\u0301 with a hat", ["hat"]),
        ("a cat", "a cat with a 👑", ["👑"]),
        ("кошка", "кошка и шляпа", ["и", "шляпа"]),
    ],
)
def test_changed_words(tokenize, source, target, expected):
    words = changed_words(tokenize, source, target)
    assert list(words.text) == expected
    assert [target[start:stop] for start, stop in words.spans] == expected
    assert bool(words.tokens) == bool(expected)


@pytest.mark.parametrize(
    ("target", "word", "pieces"),
    [
        ("a cat with a hat", "hat", ["hat"]),
        ("a cat with a teddy-bear", "teddy-bear", ["teddy", "-", "bear"]),
        ("a cat, with two crowns!", "crowns", ["crowns"]),
        ("a cat   with\ta   kimono", "kimono", ["kimono"]),
        ("“a cat” — with a hat", "hat", ["hat"]),
        ("a cat isn't a dog", "dog", ["dog"]),
    ],
)
def test_the_tokens_spell_the_word(tokenize, target, word, pieces):
    words = changed_words(tokenize, "a cat", target)
    assert words.text == (word,)
    assert spelled(tokenize, target, words) == pieces
    assert words.tokens == tuple(range(words.tokens[0], words.tokens[0] + len(words.tokens)))


def test_a_repeated_word_is_found_at_its_place(tokenize):
    target = "a cat and a cat with a hat"
    words = changed_words(tokenize, "a cat and a dog", target)
    assert words.spans == ((12, 15), (23, 26))  # the second cat
    assert words.tokens == (5, 8)  # 0 is the start token


def test_accented_letters_and_pictographs_keep_the_offsets(tokenize):
    target = "une fe\u0301e 👑 with a hat"
    words = changed_words(tokenize, "une fée 👑", target)
    assert words.text == ("hat",)
    assert spelled(tokenize, target, words) == ["hat"]


def test_no_source_prompt_takes_every_content_word(tokenize):
    for source in (None, "", " , "):
        words = changed_words(tokenize, source, "two blue cats on the grass")
        assert words.text == ("blue", "cats", "grass")
        assert "no source prompt" in words.note


def test_nothing_new_is_said(tokenize):
    same = changed_words(tokenize, "a cat, on grass", "A cat on grass.")
    assert same.text == same.spans == same.tokens == ()
    assert "same words" in same.note
    assert "Only small words" in changed_words(tokenize, "a cat on grass", "the cat in grass").note
    assert "no word that the source prompt lacks" in changed_words(tokenize, "a cat with a hat", "a cat").note
    assert "no word to look for" in changed_words(tokenize, None, "the").note
    assert changed_words(tokenize, "a cat", "a dog").note == ""


def test_a_described_noun_is_named_in_the_note(tokenize):
    assert changed_words(tokenize, "a cat", "a blue cat").note == "'blue' describes 'cat', so 'cat' is looked for too."


def test_removed_words_index_the_source(tokenize):
    source = "a cat with a hat and a dog"
    words = removed_words(tokenize, source, "a cat and a dog")
    assert words.text == ("hat",)
    assert spelled(tokenize, source, words) == ["hat"]
    assert words.tokens == (5,)
    assert removed_words(tokenize, "a cat", "a cat with a hat").text == ()
    assert "no source prompt" in removed_words(tokenize, None, "a cat").note
    three = "an apple, a pear and a cup on a table"  # a word that only moves is not taken out
    assert removed_words(tokenize, three, "an apple and a pear on a table").text == ("cup",)
    assert changed_words(tokenize, three, "an apple and a pear on a table").text == ()
    assert changed_words(tokenize, "a cat and a dog", "a dog and a cat").text != ()
    swapped = changed_words(tokenize, "a cat and a dog", source)
    assert (swapped.text, swapped.tokens) == (words.text, words.tokens)


def test_find_words(tokenize):
    prompt = "A Cat and a cat with a top hat, and a crown"
    assert find_words(tokenize, prompt, ["crown"]).text == ("crown",)
    both = find_words(tokenize, prompt, ["top hat", "CAT"])
    assert both.text == ("Cat", "cat", "top hat")
    assert spelled(tokenize, prompt, both) == ["cat", "cat", "top", "hat"]
    assert find_words(tokenize, prompt, ["with"]).text == ("with",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sofa"], "'sofa' is not in the prompt; its words are: Cat, crown."),
        (["crown", "crown cat"], "'crown cat' is not in the prompt; its words are: Cat, crown."),
        (["..."], "'...' is not a word; name words of the prompt: Cat, crown."),
        ([], "No word was named; name at least one word of the prompt."),
    ],
)
def test_find_words_refuses(tokenize, names, message):
    with pytest.raises(ValueError) as refused:
        find_words(tokenize, "A Cat with a crown", names)
    assert str(refused.value) == message


def test_only_what_the_model_reads_counts(tokenize):
    long = " ".join(["grass"] * MAX_TOKENS)
    words = changed_words(tokenize, long, long + " with a hat")
    assert words.text == () and "as far as the model reads" in words.note
    with pytest.raises(ValueError, match="past the part of the prompt"):
        find_words(tokenize, long + " with a hat", ["hat"])


def test_a_huge_prompt_is_quick(tokenize):
    assert changed_words(tokenize, "a " * 50_000, "a cat " * 20_000).text[0] == "cat"


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        (
            "an apple wearing a crown, a pear and a cup on a wooden table",
            "crown",
            "an apple wearing a crown on a wooden table",
        ),
        ("an apple, a pear and a cup on a wooden table", "cup", "a cup on a wooden table"),
        ("a cat on grass", "cat", "a cat on grass"),
        ("a cat and a dog", "dog", "a dog"),
        ("a snowman wearing a top hat and a balloon on snow", "balloon", "a balloon on snow"),
        ("a cat; a dog, and an owl", "owl", "an owl"),
        ("an apple, a pear and a cup on a wooden table", "wooden", "a wooden table"),
    ],
)
def test_a_clause_says_what_a_prompt_says_of_a_word_and_of_the_place(prompt: str, word: str, expected: str):
    start = prompt.rindex(word)
    assert clause(prompt, [(start, start + len(word))]) == expected
    assert clause(prompt, []) == prompt
