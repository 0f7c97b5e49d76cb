"""open_clip's CoCa against the coca_* presets; its decoder of captions is left out."""

import open_clip

from mmvit import hub
from mmvit.models.presets import preset
from tests.parity import pairs
from tests.parity.case import Case
from tests.parity.cases_clip import open_clip_model, open_clip_resized


def _outputs(peer, x):
    """open_clip's towers return tokens as well unless they are told not to."""
    peer.visual.output_tokens = peer.text.output_tokens = False
    embedded = {"encode_image": peer.visual, "encode_text": peer.text}
    peer.encode_image = lambda pixels, normalize: embedded["encode_image"](pixels)
    peer.encode_text = lambda ids, normalize: embedded["encode_text"](ids)
    return pairs.open_clip_pair(peer, x)


def _case(name: str, theirs: str, depth: int | None = 2) -> Case:
    image = preset(name).image
    p, full = image.patch_size, image.core.depth
    return Case(
        preset=name,
        peer=f"open_clip {theirs}",
        build=lambda: open_clip_model(theirs, depth, kind=open_clip.CoCa),
        convert=hub.from_open_clip,
        outputs=_outputs,
        ours=pairs.ours,
        inputs=pairs.pair_inputs,
        shape=(2, 3, 224, 224, 76),
        other=(2, 3, 10 * p, 10 * p, 40),
        resize=lambda peer, shape: open_clip_resized(theirs, depth, open_clip.CoCa, peer, shape),
        overrides={"image.depth": depth, "text.depth": depth} if depth else {},
        blocks=f"{depth} of {full}" if depth else "all",
        slow=depth is None,
        note=pairs.PAIR_NOTE,
    )


CASES = [
    _case("coca_base_patch32", "coca_ViT-B-32"),
    _case("coca_large_patch14", "coca_ViT-L-14"),
    _case("coca_base_patch32", "coca_ViT-B-32", depth=None),
]
