import io
import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from mmvit.data.batch import collate
from mmvit.data.captions import all_captions, choose, group_of
from mmvit.data.decode import Decoder
from mmvit.data.image import ImageAugment, ImagePreprocess
from mmvit.data.pixels import BadSample
from mmvit.errors import UserError
from mmvit.types import Sample

SMALL = ImagePreprocess(size=(4, 4))


def npy(array) -> bytes:
    sink = io.BytesIO()
    np.save(sink, array)
    return sink.getvalue()


def raw_of(**members) -> dict[str, bytes]:
    encoded = {k: json.dumps(v).encode() if k == "json" else v for k, v in members.items()}
    return {"__key__": b"k", **encoded}


def test_captions_come_from_text_and_json_by_language():
    meta = {"texts": {"en": ["two", "one", " "], "fr": "trois", "de": ["vier", 7]}}
    raw = {"txt": b"\xef\xbb\xbf one \n"}
    assert all_captions(raw, meta, ("en",)) == ["one", "two"]
    assert all_captions(raw, meta, ("fr", "en")) == ["one", "trois", "two"]
    assert all_captions(raw, meta, ("*",)) == ["one", "vier", "two", "trois"]
    assert all_captions({}, {"texts": ["a", "b"]}, ("xx",)) == ["a", "b"]


def test_choice_is_seeded_even_and_can_prefer_the_first():
    captions = ["a", "b", "c"]
    drawn = [choose(captions, "random", random.Random(i)) for i in range(3000)]
    assert all(900 < drawn.count(c) < 1100 for c in captions)
    assert drawn == [choose(captions, "random", random.Random(i)) for i in range(3000)]
    assert {choose(captions, "first", random.Random(i)) for i in range(20)} == {"a"}
    mostly = [choose(captions, "random", random.Random(i), first_rate=0.7) for i in range(3000)]
    assert 0.77 < mostly.count("a") / 3000 < 0.83  # 0.7 + 0.3 / 3


def test_groups_ignore_case_spacing_and_final_stop():
    assert group_of("A  red\tFox.") == group_of("a red fox") != group_of("a red dog")
    assert group_of(7) == group_of("7")
    assert all(0 <= group_of(str(i)) < 2**63 for i in range(100))


@pytest.mark.parametrize(
    ("members", "fields", "reason"),
    [
        ({}, ("image",), "image-missing"),
        ({"v1.jpg": b"x"}, ("image",), "image-missing"),
        ({"png": b""}, ("image",), "image-empty"),
        ({"jpg": b"<html>"}, ("image",), "image-unreadable"),
        ({}, ("text",), "text-missing"),
        ({"json": {"label": "x"}}, ("text",), "text-missing"),
        ({"txt": b" \n"}, ("text",), "text-empty"),
        ({"txt": b"", "json": {"texts": {"en": [""]}}}, ("text",), "text-empty"),
        ({"txt": "caf\xe9".encode("latin1")}, ("text",), "text-not-utf8"),
        ({"txt": b"a" * 1_000_000}, ("text",), "text-too-long"),
        ({"txt": b"a", "json": [1]}, ("text",), "json-unreadable"),
        ({"txt": b"a", "json": 3}, ("meta",), "json-unreadable"),
        ({}, ("image_embedding",), "embedding-missing"),
        ({"npy": b"\x93NUMPY broken"}, ("image_embedding",), "embedding-unreadable"),
        ({"npy": npy(np.array(["a"], dtype=object))}, ("image_embedding",), "embedding-unreadable"),
        ({"npy": npy(np.zeros(3, np.float32))[:-4]}, ("image_embedding",), "embedding-unreadable"),
        ({"npy": npy(np.zeros((2, 2, 3), np.float32))}, ("image_embedding",), "embedding-shape"),
        ({"npy": npy(np.zeros((0, 3), np.float32))}, ("image_embedding",), "embedding-shape"),
        ({"npy": npy(np.zeros(5, np.float32))}, ("image_embedding",), "embedding-shape"),
        ({"npy": npy(np.zeros(3, np.int32))}, ("image_embedding",), "embedding-dtype"),
        ({"npy": npy(np.array([1, np.nan, 0], np.float16))}, ("image_embedding",), "embedding-not-finite"),
    ],
)
def test_every_fault_has_its_reason(members, fields, reason):
    with pytest.raises(BadSample) as bad:
        Decoder(fields=fields, preprocess=SMALL, embedding_dim=3)(raw_of(**members), random.Random(0))
    assert bad.value.reason == reason


@pytest.mark.parametrize("text", ["\N{FOX FACE}\N{DOG FACE}", "\0nul", "a" * 30_000, "\u202eright to left"])
def test_odd_captions_are_captions(text):
    sample = Decoder(fields=("text",))(raw_of(txt=text.encode()), random.Random(0))
    assert sample.text == text.strip()


def test_a_sample_carries_what_was_asked(image_bytes):
    raw = raw_of(png=image_bytes(Image.new("RGB", (9, 9), (1, 2, 3))), txt=b"main", npy=npy(np.ones((2, 3))),
                 json={"label": "fox", "texts": {"en": ["other"]}})  # fmt: skip
    decoder = Decoder(fields=("image", "text"), preprocess=SMALL, caption="first")
    sample = decoder(raw, random.Random(0), "src")
    assert (sample.key, sample.source, sample.text, sample.meta) == ("k", "src", "main", {})
    assert sample.image.shape == (3, 4, 4)
    assert sample.image_embedding is None
    assert sample.group == group_of("main")
    by_label = Decoder(fields=("image_embedding", "meta"), group_by="label")(raw, random.Random(0))
    assert by_label.group == group_of("fox")
    assert by_label.meta["label"] == "fox"
    assert by_label.image_embedding.dtype == torch.float32
    every = Decoder(fields=("text",), caption="all")(raw, random.Random(0))
    assert every.meta["captions"] == ["main", "other"]
    by_x = Decoder(fields=("text",), group_by="x")
    one, two = (by_x({**raw, "__key__": key}, random.Random(0)) for key in (b"a", b"b"))
    assert one.group != two.group, "samples without the field are all different"


def test_only_needed_members_are_read():
    wants = Decoder(fields=("image_embedding", "text")).wants
    assert [wants(name) for name in ("png", "npy", "txt", "json", "wav")] == [False, True, True, True, False]
    assert not Decoder(fields=("image",)).wants("json")
    assert Decoder(fields=("image",), group_by="label").wants("json")


def test_views_are_drawn_in_training_only():
    raw = raw_of(npy=npy(np.arange(4, dtype=np.float16)[:, None] * np.ones(3, np.float16)))
    fixed = Decoder(fields=("image_embedding",))
    drawn = Decoder(fields=("image_embedding",), random_view=True)
    assert {fixed(raw, random.Random(i)).image_embedding[0].item() for i in range(20)} == {0.0}
    assert {drawn(raw, random.Random(i)).image_embedding[0].item() for i in range(50)} == {0.0, 1.0, 2.0, 3.0}
    fortran = raw_of(npy=npy(np.asfortranarray(np.ones((2, 3), np.float32))))
    with pytest.raises(BadSample, match="embedding-unreadable"):
        fixed(fortran, random.Random(0))


def test_augmentation_is_used_when_given(image_bytes, picture):
    raw = raw_of(png=image_bytes(picture(32, 32)))
    decoder = Decoder(fields=("image",), preprocess=SMALL, augment=ImageAugment(crop_scale=(0.3, 0.6)))
    one, same, other = (decoder(raw, random.Random(seed)).image for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_unknown_fields_and_missing_members_are_found_at_the_start():
    with pytest.raises(UserError, match="did you mean image"):
        Decoder(fields=("imag",))
    with pytest.raises(UserError, match="caption="):
        Decoder(caption="last")
    with pytest.raises(UserError, match=r"has no image: .*hold txt, v1\.jpg \(keys must not contain dots\)"):
        Decoder(fields=("image", "text")).check({"txt", "v1.jpg"}, "here")


def test_collate_pads_and_keeps_order(sentencepiece):
    samples = [Sample(key=str(i), text=t, group=i, image=torch.full((3, 2, 2), i, dtype=torch.uint8))
               for i, t in enumerate(["a fox", "a photo of a red fox a photo of a dog", "dog"])]  # fmt: skip
    full, short = collate(samples, sentencepiece), collate(samples[::2], sentencepiece, "longest")
    assert full.text.shape == (3, 8)
    assert full.truncated == 1
    assert short.text.shape[1] % 4 == 0
    assert full.keys == ["0", "1", "2"]
    assert full.captions[2] == "dog"
    assert full.image[:, 0, 0, 0].tolist() == full.group.tolist() == [0, 1, 2]
    assert full.image_embedding is None
    assert full.meta is None
    bare = collate(samples)
    assert bare.text is None
    assert bare.captions == full.captions
    mixed = [Sample(key="a", image_embedding=torch.zeros(3)), Sample(key="b", image_embedding=torch.zeros(4))]
    with pytest.raises(UserError, match="different shapes"):
        collate(mixed)
