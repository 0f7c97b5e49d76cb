"""What a model is fed through, as transformers' files: preprocessor_config.json and a tokenizer.

A tokenizer is written only when the one that transformers reads back gives the same ids.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from mmvit.data.image import ImagePreprocess
from mmvit.data.text import ClipTokenizer, SentencePieceTokenizer, Tokenizer, WordPieceTokenizer
from mmvit.errors import need
from mmvit.models.config import ImageTowerConfig

_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}  # Pillow's numbers
# Words, numbers, punctuation, runs of spaces, accents, other scripts, a picture sign, a text that is cut.
PROBES = (
    "a photo of a cat.",
    "Two foxes, one violin -- and 3 (three) drums!",
    "  spaced   out  ",
    "don't we'll it's O'Neil: 50% off; #1 / 2",
    "naïve café, Ångström, straße",
    "犬 と 猫, привет, مرحبا",
    "a fox \U0001f98a here",
    "one two three four five six seven " * 20,
    "",
)


def preprocessor_config(preprocess: ImagePreprocess, tower: ImageTowerConfig) -> dict[str, Any]:
    """preprocessor_config.json as CLIP's image processor reads it, which can resize, crop and normalise.

    Raises:
        ValueError: a way to resize that transformers does not know.
    """
    height, width = preprocess.size
    if preprocess.resize == "pad" or (preprocess.resize == "shortest_crop" and height != width):
        raise ValueError(
            f"preprocess.resize is '{preprocess.resize}' to {height}x{width}, which transformers' image "
            "processors cannot do: pass preprocess=ImagePreprocess(size=..., resize='squash'), and know that "
            "it feeds the model other pictures"
        )
    before_h, before_w = (math.floor(side / preprocess.crop_fraction) for side in preprocess.size)
    squash = preprocess.resize == "squash"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": before_h, "width": before_w} if squash else {"shortest_edge": before_h},
        "resample": _RESAMPLE[preprocess.interpolation],
        "do_center_crop": not squash or preprocess.crop_fraction < 1,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower.mean),
        "image_std": list(tower.std),
    }


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the special tokens by the names of transformers' configs.

    Raises:
        ValueError: captions have no end token, or one that transformers reads otherwise.
    """
    end = getattr(tokenizer, "end_id", getattr(tokenizer, "eos_id", None))
    if isinstance(tokenizer, WordPieceTokenizer) and tokenizer.sep:
        end = tokenizer.sep_id
    if end is None:
        raise ValueError("tokenizer.sep is False: transformers finds the end of a text by its end token only")
    start = getattr(tokenizer, "start_id", getattr(tokenizer, "cls_id", None))
    return {"eos_token_id": end, "pad_token_id": tokenizer.pad_id} | (
        {} if start is None else {"bos_token_id": start}
    )


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, padding: bool) -> str:
    """Nothing ("") when the tokenizer's files were written into `folder`, otherwise why they were not.

    Args:
        tokenizer: ours.
        folder: to write into.
        padding: whether ids behind the end must be equal too (a tower that attends them).
    """
    transformers = need("transformers")
    before = {p.name for p in folder.iterdir()}
    try:
        peer = _WRITERS[tokenizer.kind](tokenizer)
    except (KeyError, ValueError) as error:
        return f"tokenizer left out: {error}"
    peer.save_pretrained(folder)
    peer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    ours = tokenizer(list(PROBES))
    length = tokenizer.context_length
    theirs = peer(
        list(PROBES), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )["input_ids"]
    equal = ours.ids == theirs if padding else (ours.ids == theirs) | ~ours.mask
    if equal.all():
        return ""
    for name in {p.name for p in folder.iterdir()} - before:
        (folder / name).unlink()
    text = PROBES[int((~equal).any(dim=1).nonzero()[0])]
    return f"tokenizer left out: transformers gives other ids for {text[:60]!r}"


def _clip(tokenizer: Tokenizer) -> Any:
    assert isinstance(tokenizer, ClipTokenizer)
    bpe = need("open_clip.tokenizer").SimpleTokenizer()
    merges = [pair for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    return need("transformers").CLIPTokenizer(
        vocab=dict(bpe.encoder),
        merges=merges,
        bos_token=bpe.decoder[bpe.sot_token_id],
        eos_token=bpe.decoder[bpe.eot_token_id],
        unk_token=bpe.decoder[bpe.eot_token_id],
        pad_token=bpe.decoder[bpe.eot_token_id],
        model_max_length=tokenizer.context_length,
    )


def _wordpiece(tokenizer: Tokenizer) -> Any:
    assert isinstance(tokenizer, WordPieceTokenizer)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    made = need("tokenizers").Tokenizer.from_str(tokenizer.files()["tokenizer.json"].decode())
    end = " [SEP]" if tokenizer.sep else ""
    made.post_processor = need("tokenizers.processors").TemplateProcessing(
        single=f"[CLS] $A{end}", special_tokens=[("[CLS]", tokenizer.cls_id), ("[SEP]", tokenizer.sep_id)]
    )
    named = {"cls_token": "[CLS]", "sep_token": "[SEP]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    return _fast(made, tokenizer, **named)


def _sentencepiece(tokenizer: Tokenizer) -> Any:
    """A unigram model in the form of the tokenizers library.

    Raises:
        ValueError: another kind of SentencePiece model.
    """
    assert isinstance(tokenizer, SentencePieceTokenizer)
    lib, normal = need("tokenizers"), need("tokenizers.normalizers")
    proto = need("sentencepiece.sentencepiece_model_pb2").ModelProto.FromString(
        tokenizer.files()["sentencepiece.model"]
    )
    spec = proto.normalizer_spec
    if proto.trainer_spec.model_type != 1 or not spec.add_dummy_prefix or not spec.remove_extra_whitespaces:
        raise ValueError("only unigram models with SentencePiece's usual white space can be written")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    unknown = proto.trainer_spec.unk_id
    made = lib.Tokenizer(
        lib.models.Unigram(pieces, unk_id=unknown, byte_fallback=proto.trainer_spec.byte_fallback)
    )
    steps = [normal.Lowercase()] if tokenizer.lowercase else []
    if spec.precompiled_charsmap:
        steps.append(normal.Precompiled(spec.precompiled_charsmap))
    steps += [normal.Replace(lib.Regex(" {2,}"), " "), normal.Strip()]
    made.normalizer = normal.Sequence(steps)
    made.pre_tokenizer = need("tokenizers.pre_tokenizers").Metaspace(prepend_scheme="always", split=True)
    made.decoder = need("tokenizers.decoders").Metaspace(prepend_scheme="always")
    end = pieces[tokenizer.eos_id][0]
    made.post_processor = need("tokenizers.processors").TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_id)]
    )
    return _fast(made, tokenizer, eos_token=end, pad_token=end, unk_token=pieces[unknown][0])


def _fast(made: Any, tokenizer: Tokenizer, **special: str) -> Any:
    return need("transformers").PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=tokenizer.context_length,
        padding_side="right",
        truncation_side="right",
        **special,
    )


_WRITERS = {"clip": _clip, "wordpiece": _wordpiece, "sentencepiece": _sentencepiece}
