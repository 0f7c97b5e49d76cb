"""The command line of short runs of recipes/vatt.py."""

BASE = {
    "--preset": "tiny",
    "--train.precision": "fp32",
    "--train.threads": 1,
    "--data.sample-rate": 8000,
}
# Three small cores: the tiny preset of the recipe cuts down the model with one.
THREE = {
    "--model.name": "vatt_tiny",
    "--model.options": (
        *(
            f"{tower}.core.{field}"
            for tower in ("video", "audio", "text")
            for field in ("width=32", "depth=2", "num_heads=2", "mlp_dim=64")
        ),
        "clip_size=(4,32,32)",
        "video.patch_size=(2,16,16)",
        "samples=8000",
        "audio.patch_size=80",
        "va_dim=32",
        "vt_dim=16",
    ),
}
SOURCES = ("clips", "silent", "unnamed", "sounds", "stills")


def options(media, out, changes=(), sources=SOURCES):
    """The words of a run on a mixture of `sources`; values of `changes` may be tuples."""
    base = {
        **BASE,
        "--data.train": "::".join(str(media / name) for name in sources),
        "--model.tokenizer": media / "tokenizer",
        "--out": out,
    }
    if len(sources) > 1:
        base["--data.weights"] = tuple(3 if name == "clips" else 1 for name in sources)
    words = []
    for name, value in (base | dict(changes)).items():
        words += [name, *(value if isinstance(value, tuple) else () if value is True else (value,))]
    return [str(word) for word in words]
