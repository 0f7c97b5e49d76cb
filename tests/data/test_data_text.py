import json
import pickle

import open_clip
import pytest
import torch
import transformers

from mmvit.data.text import ClipTokenizer, SentencePieceTokenizer, WordPieceTokenizer, load_tokenizer
from mmvit.data.text_sentencepiece import train_sentencepiece
from mmvit.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "croco", "##dile", "red", ",", "##s"]
CAPTIONS = ["a red dog", "A DOG, crocodiles", "", "  ", "\N{FOX FACE}", "d\u00f3g", "zebra " * 30, "a " * 300]


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


@pytest.fixture(scope="module")
def clip() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.fixture(params=["sentencepiece", "wordpiece", "clip"])
def tokenizer(request, sentencepiece, vocab, clip):
    return {
        "sentencepiece": sentencepiece,
        "wordpiece": WordPieceTokenizer(vocab, context_length=8),
        "clip": clip.with_context(8),
    }[request.param]


def test_every_tokenizer_keeps_the_rules(tokenizer):
    out = tokenizer(CAPTIONS)
    assert out.ids.shape == out.mask.shape == (len(CAPTIONS), tokenizer.context_length)
    assert out.ids.dtype == torch.int64
    assert out.mask.dtype == torch.bool
    assert out.ids.min() >= 0
    assert out.ids.max() < tokenizer.vocab_size
    assert out.mask[:, 0].all(), "even an empty caption has a token to pool at"
    assert (out.ids[~out.mask] == tokenizer.pad_id).all()
    lengths = out.mask.sum(1)
    assert torch.equal(out.mask, torch.arange(8) < lengths[:, None]), "real tokens come first"
    assert out.truncated >= 2
    one_by_one = [tokenizer([text]) for text in CAPTIONS]
    assert torch.equal(out.ids, torch.cat([o.ids for o in one_by_one]))
    assert out.truncated == sum(o.truncated for o in one_by_one)
    assert tokenizer([]).ids.shape == (0, 8)


def test_saved_and_pickled_tokenizers_are_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert "tokenizer_config.json" in names
    assert not any(name.endswith((".pkl", ".bin", ".pt")) for name in names)
    for other in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert type(other) is type(tokenizer)
        assert other.fingerprint() == tokenizer.fingerprint()
        assert torch.equal(other(CAPTIONS).ids, tokenizer(CAPTIONS).ids)
    longer = load_tokenizer(tmp_path, context_length=11)
    assert longer(CAPTIONS).ids.shape[1] == 11
    assert longer.fingerprint() != tokenizer.fingerprint()
    assert tokenizer.context_length == 8


def test_trim_drops_only_padding(tokenizer):
    full = tokenizer(["a dog", "a"])
    short = full.trim(multiple=4)
    assert short.ids.shape[1] in (4, 8)
    assert full.ids.shape[1] == 8
    assert torch.equal(short.ids, full.ids[:, : short.ids.shape[1]])
    assert short.mask.sum() == full.mask.sum()
    assert tokenizer([]).trim().ids.shape[0] == 0


def test_misuse_is_named(tokenizer):
    with pytest.raises(UserError, match="list of captions"):
        tokenizer("a dog")
    with pytest.raises(UserError, match="must be str, got NoneType"):
        tokenizer(["a", None])
    with pytest.raises(UserError, match="at least 2"):
        tokenizer.with_context(1)


def test_sentencepiece_eos_is_sticky_and_pads(sentencepiece):
    eos = sentencepiece.eos_id
    assert eos == sentencepiece.pad_id == 1
    out = sentencepiece(["fox", "a photo of a red fox a photo of a green volcano", ""])
    assert out.truncated == 1
    assert out.ids[1, -1] == eos
    assert eos not in out.ids[1, :-1]
    assert (out.ids[0, out.mask[0].sum() - 1 :] == eos).all()
    assert out.mask[0].sum() == (out.ids[0] != eos).sum() + 1, "the mask ends with the first EOS"
    assert out.ids[2].tolist() == [eos] * 8
    full = sentencepiece.with_context(64)(["a photo of a red fox a photo of a green volcano"])
    assert torch.equal(full.ids[0, :7], out.ids[1, :7]), "cutting keeps the first L-1 pieces"


def test_sentencepiece_round_trip_and_bytes(sentencepiece):
    long = sentencepiece.with_context(64)
    for text in ("a photo of a red fox", "\N{CROCODILE} 日本 zebra"):
        assert long.decode(long([text]).ids[0].tolist()) == text
    assert torch.equal(long(["A RED Fox"]).ids, long(["a red fox"]).ids)


def test_sentencepiece_training_is_deterministic_and_fits_small_corpora():
    captions = ["a red fox", "a green volcano", "the red dog"]
    model, size = train_sentencepiece(captions, 5000)
    assert size < 5000
    assert train_sentencepiece(captions, 5000) == (model, size)
    bare, fewer = train_sentencepiece(captions, 5000, byte_fallback=False)
    assert fewer < size
    cased = SentencePieceTokenizer(
        train_sentencepiece(["A b"] * 3, 5000, lowercase=False)[0], lowercase=False
    )
    assert not torch.equal(cased(["A b"]).ids, cased(["a b"]).ids)
    with pytest.raises(UserError, match="no caption"):
        train_sentencepiece(["", "  "], 100)
    with pytest.raises(UserError, match="too small"):
        train_sentencepiece(captions, 20)


def test_wordpiece_has_cls_and_no_sep(vocab):
    tokenizer = WordPieceTokenizer(vocab, context_length=6)
    out = tokenizer(["a red dog", "a red dog a red dog a"])
    assert out.ids.tolist() == [[2, 4, 8, 5, 0, 0], [2, 4, 8, 5, 4, 8]]
    assert out.truncated == 1
    assert torch.equal(out.mask, out.ids != 0)
    assert tokenizer.decode(out.ids[0].tolist()) == "a red dog"


def test_wordpiece_with_sep_equals_transformers(vocab):
    tokenizer = WordPieceTokenizer(vocab, context_length=8, sep=True)
    peer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    want = peer(CAPTIONS, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    out = tokenizer(CAPTIONS)
    assert torch.equal(out.ids, want["input_ids"])
    assert torch.equal(out.mask, want["attention_mask"].bool())


def test_wordpiece_reads_a_tokenizer_json_without_its_padding(vocab, tmp_path):
    peer = transformers.BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)})
    peer.backend_tokenizer.enable_padding(length=5)
    peer.backend_tokenizer.enable_truncation(3)
    path = tmp_path / "tokenizer.json"
    path.write_text(peer.backend_tokenizer.to_str())
    mine = WordPieceTokenizer(path, context_length=8)(CAPTIONS)
    assert torch.equal(mine.ids, WordPieceTokenizer(vocab, context_length=8)(CAPTIONS).ids)


def test_clip_equals_open_clip(clip):
    peer = open_clip.SimpleTokenizer()
    texts = [*CAPTIONS, "a photo of a dog's tail, 3 & more!", "x" * 500]
    assert torch.equal(clip(texts).ids, peer(texts))
    short = clip.with_context(16)
    assert torch.equal(short(texts).ids, peer(texts, context_length=16))
    assert (short(texts).ids.argmax(1) == short(texts).mask.sum(1) - 1).all(), (
        "the end token is the last real one"
    )
    assert clip.decode(clip(["A red Dog"]).ids[0].tolist()) == "a red dog"


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"train_tokenizer\.py"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    good = {"format": "mmvit-tokenizer", "schema_version": 1, "kind": "clip", "context_length": 77}
    for change, message in [
        ({"format": "other"}, "not written by mmvit"),
        ({"schema_version": 7}, "schema_version 7"),
        ({"kind": "clap"}, "did you mean clip"),
        ({"kind": "sentencepiece"}, "cannot read"),
        ({"contxt": 3}, "not a complete"),
    ]:
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(UserError, match=message):
            load_tokenizer(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_tokenizer(tmp_path)


def test_files_that_are_no_tokenizers(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"\xff\xfe nonsense")
    with pytest.raises(UserError, match="not a SentencePiece model"):
        SentencePieceTokenizer(path)
    with pytest.raises(UserError, match="neither"):
        WordPieceTokenizer(path)
    path.write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError):
        WordPieceTokenizer(path)
    path.write_text("a\nb\n")
    with pytest.raises(UserError, match="has no"):
        WordPieceTokenizer(path)
