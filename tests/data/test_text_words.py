"""Whole words as tokens: splitting, vocabularies, folders, word vectors, the script, mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmvit.data.text import WordTokenizer, load_tokenizer
from mmvit.data.text_words import read_word_vectors, split, train_words
from mmvit.data.write import ShardWriter
from mmvit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def words():
    return WordTokenizer(["a", "dog", "don't", "barks", "42"], context_length=6)


def test_words_are_split_and_lowered():
    assert split("A Dog's bark, twice-42_x!") == ["a", "dog's", "bark", "twice", "42", "x"]
    assert split("don\u2019t \ufb01x \u00c9l\u00e8ve 'quoted'") == [
        "don't",
        "fix",
        "\u00e9l\u00e8ve",
        "quoted",
    ]
    assert split(" ... ") == []


def test_ids_padding_and_the_unknown(words):
    out = words(["A dog barks", "a zebra, don't", "", "a a a a a a a"])
    assert out.ids.tolist() == [[2, 3, 5, 0, 0, 0], [2, 1, 4, 0, 0, 0], [1, 0, 0, 0, 0, 0], [2] * 6]
    assert out.mask.sum(1).tolist() == [3, 3, 1, 6]
    assert out.truncated == 1
    assert words.vocab_size == 7
    assert words.decode(out.ids[1].tolist()) == "a ? don't"


def test_a_folder_brings_it_back(words, tmp_path):
    words.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, WordTokenizer)
    assert again.words == words.words
    assert again.fingerprint() == words.fingerprint()
    assert again.context_length == 6
    assert WordTokenizer(["a", "cat"], context_length=6).fingerprint() != words.fingerprint()
    assert load_tokenizer(tmp_path, 3)(["a dog"]).ids.shape == (1, 3)


def test_the_most_frequent_words_are_learned():
    captions = ["b a", "a c", "a b", "d"]
    assert train_words(captions, 100) == ["a", "b", "c", "d"]
    assert train_words(captions, 4) == ["a", "b"]
    assert train_words(captions, 100, min_count=2) == ["a", "b"]
    with pytest.raises(UserError, match="vocab_size=2 and min_count=1 leave none of 4 words"):
        train_words(captions, 2)


@pytest.mark.parametrize("header", ["", "9 2\n"])
def test_vectors_of_word2vecs_text_format(words, tmp_path, header):
    file = tmp_path / "vectors.txt"
    file.write_text(header + "zebra 9 9\ndog 1.5 -2\nbarks 3 4e-1\ndog 0 0\n")
    vectors, known = read_word_vectors(file, words)
    assert known.nonzero().flatten().tolist() == [3, 5]
    assert vectors[3].tolist() == [1.5, -2.0]
    assert vectors[5].tolist() == pytest.approx([3.0, 0.4])
    assert (vectors[~known] == 0).all()


def test_vectors_of_an_array(words, tmp_path):
    array = np.arange(14, dtype=np.float64).reshape(7, 2)
    np.save(tmp_path / "v.npy", array)
    vectors, known = read_word_vectors(tmp_path / "v.npy", words)
    assert vectors.dtype == torch.float32
    assert vectors[6].tolist() == [12, 13]
    assert known.tolist() == [False, False] + [True] * 5
    np.save(tmp_path / "w.npy", array[:3])
    with pytest.raises(UserError, match=r"holds \(3, 2\), expected \(7, W\), a row for each id"):
        read_word_vectors(tmp_path / "w.npy", words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog 1 2\nbarks 1\n", r"rows of \[1, 2\] numbers"),
        ("zebra 1 2\n", "none of the tokenizer's words"),
        ("dog 1 two\n", "line 1: could not convert"),
    ],
)
def test_bad_vectors_are_one_line(words, tmp_path, content, message):
    (tmp_path / "v.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_word_vectors(tmp_path / "v.txt", words)
    with pytest.raises(UserError, match="cannot read the word vectors"):
        read_word_vectors(tmp_path / "absent.txt", words)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "needs words, each once; none"),
        (["a", "b", "a"], "twice: 'a'"),
        (["two words"], "'two words' is not one lower-case word"),
        (["Dog"], "'Dog' is not one lower-case word"),
        (b"\xff\xfe", "must be UTF-8"),
    ],
)
def test_bad_vocabularies_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        WordTokenizer(given)


def test_the_script_makes_one(tmp_path):
    with ShardWriter(tmp_path / "train" / "s", 4) as writer:
        for i, text in enumerate(["a dog", "a cat", "The dog"]):
            writer.write(f"{i}", {"txt": text})
    command = [sys.executable, "scripts/train_tokenizer.py", "--data", str(tmp_path / "train")]
    command += ["--out", str(tmp_path / "words"), "--kind", "words", "--context-length", "4"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "6 words; 2.0 tokens a caption" in out
    assert load_tokenizer(tmp_path / "words").words == ("a", "dog", "cat", "the")
    assert json.loads((tmp_path / "words" / "tokenizer_config.json").read_text())["kind"] == "words"
