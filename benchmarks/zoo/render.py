"""From a recipe to the text of a script."""

import functools
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.zoo.parts import ARCHITECTURES, DATA_SETS
from benchmarks.zoo.recipe import Recipe

SUBJECTS = {
    "mnist": "Handwritten digits (MNIST)",
    "digits": "Handwritten digits (scikit-learn)",
    "blobs": "Clusters of points",
    "circles": "Two circles of points",
    "rt-polarity": "Praise and blame in movie reviews",
    "breast-cancer": "Benign and malignant tumours",
}
NETWORKS = {
    "mlp-deep": "a deep perceptron",
    "mlp-shallow": "a perceptron with two hidden layers",
    "mlp-tapered": "a perceptron that narrows towards its output",
    "mlp-residual": "a perceptron with skips",
    "cnn-plain": "a convolutional network",
    "cnn-residual": "a residual network",
    "lstm": "an LSTM",
    "gru": "a GRU",
    "transformer-handwritten": "a transformer",
    "transformer-fused": "PyTorch's transformer encoder",
    "autoencoder": "an autoencoder",
    "autoencoder-conv": "a convolutional autoencoder",
}


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def render(recipe: Recipe) -> str:
    """The whole script: self-contained, it takes the folder of real data as its only argument."""
    text = _environment().get_template("script.py.j2").render(
        r=recipe,
        facts=DATA_SETS[recipe.data],
        facts_of_architecture=ARCHITECTURES[recipe.architecture],
        title=f"{SUBJECTS[recipe.data]} with {NETWORKS[recipe.architecture]}.",
        unit_pixels=recipe.architecture == "autoencoder-conv",
    )  # fmt: skip
    return re.sub(r"\n{4,}", "\n\n\n", text.strip("\n") + "\n")
