"""The command line of short runs of recipes/owl.py."""

BASE = {
    "--preset": "tiny",
    "--train.precision": "fp32",
    "--train.threads": 1,
    "--optim.lr": 3e-3,
}


def options(scenes, out, changes=()):
    """The words of a run on train/ from pair/; values of `changes` may be tuples, True stands for a flag."""
    base = {**BASE, "--data.train": scenes / "train", "--model.pair": scenes / "pair", "--out": out}
    words = []
    for name, value in (base | dict(changes)).items():
        words += [name, *(value if isinstance(value, tuple) else () if value is True else (value,))]
    return [str(word) for word in words]
