"""What the scripts are made of: architectures, data sets, and the split between what is tuned on and what is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Split = Literal["tune", "held-out"]
Place = Literal[
    "network",
    "body",
    "hidden",
    "first",
    "front",
    "output",
    "recurrent",
    "attention",
    "norm",
    "branch",
    "embedding",
    "narrow",
]


@dataclass(frozen=True)
class Architecture:
    """A network's facts.

    layout: how it takes an input: "flat", "image", "rows" (of an image, or a sentence's words). hidden: modules whose
    linear layers are initialized by the script, and where a fault of the weights goes. front: modules before the cut
    where gradients may be detached. first: the first module with parameters. places: module path patterns (fnmatch) of
    the sites of a fault. sgd_rate, adam_rate: learning rates that a competent person would choose.
    """

    name: str
    split: Split
    family: Literal["mlp", "residual", "cnn", "recurrent", "transformer", "autoencoder"]
    layout: Literal["flat", "image", "rows"]
    hidden: tuple[str, ...]
    front: tuple[str, ...]
    first: str
    places: Mapping[str, tuple[str, ...]]
    adam_rate: float
    sgd_rate: float
    widths: tuple[int, ...]
    depth: int
    steps: int
    initialized: bool = True


@dataclass(frozen=True)
class DataSet:
    """A data set's facts.

    inputs: numbers of a flat input; side: rows and columns of an image (0: none). training, validation: samples.
    chance: the accuracy of guessing. learned: the accuracy above which a network counts as one that learns. sklearn:
    its loader there. folder: its folder of real data, where it needs one.
    """

    name: str
    split: Split
    inputs: int
    classes: int
    training: int
    validation: int
    learned: float
    side: int = 0
    sklearn: str = ""
    folder: str = ""

    @property
    def chance(self) -> float:
        return 1.0 / self.classes


def _places(**patterns: str | tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType({key: (value,) if isinstance(value, str) else value for key, value in patterns.items()})


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture(
            "mlp-deep", "tune", "mlp", "flat", ("layers",), ("layers[0]",), "layers[0]",
            _places(
                hidden="layers.*", first=("layers.0*", "layers.1*"), front="layers.*", output="output*",
                norm="layers.*", narrow=("layers.*", "output*"), branch=(),
            ),
            1e-3, 0.03, (64,) * 8, 8, 400,
        ),
        Architecture(
            "cnn-residual", "tune", "cnn", "image", ("stem", "blocks"), ("stem",), "stem[0]",
            _places(
                hidden=("stem.*", "blocks.*"), first="stem.*", front=("stem*", "blocks.0*", "blocks.1*"),
                output="output*", norm=("stem.1*", "blocks.*"), narrow=("blocks.*", "output*"), branch="blocks.*",
            ),
            2e-3, 0.05, (12,), 3, 234,
        ),
        Architecture(
            "lstm", "tune", "recurrent", "rows", ("lstm",), ("lstm",), "lstm",
            _places(
                hidden="lstm*", first="lstm*", front="lstm*", output="output*", recurrent="lstm*",
                narrow=("lstm*", "output*"),
            ),
            4e-3, 0.2, (48,), 1, 390, initialized=False,
        ),
        Architecture(
            "transformer-handwritten", "tune", "transformer", "rows", ("blocks",), ("embed", "blocks[0]"), "embed",
            _places(
                hidden="blocks.*", first="embed*", front=("embed*", "position", "blocks.*"), output="output*",
                attention="blocks.*attention*", narrow=("blocks.*", "norm*", "output*"), branch="blocks.*",
            ),
            2e-3, 0.1, (32,), 2, 468, initialized=False,
        ),
        Architecture(
            "autoencoder", "tune", "autoencoder", "flat", ("encoder", "decoder"), ("encoder",), "encoder[0]",
            _places(
                hidden=("encoder.*", "decoder.*"), first=("encoder.0*", "encoder.1*"), front="encoder*",
                output="output*", norm=("encoder.1*", "decoder.1*"), narrow=("encoder*", "decoder*"),
            ),
            2e-3, 0.2, (128, 24), 2, 390,
        ),
        Architecture(
            "mlp-shallow", "held-out", "mlp", "flat", ("first", "second"), ("first",), "first",
            _places(
                hidden=("first*", "second*"), first="first*", front="first*", output="output*",
                norm=("norm1*", "norm2*"), narrow=("second*", "output*"),
            ),
            2e-3, 0.05, (64, 64), 2, 400,
        ),
        Architecture(
            "mlp-tapered", "held-out", "mlp", "flat", ("layers",), ("layers[0]", "layers[1]"), "layers[0]",
            _places(
                hidden="layers.*", first="layers.0*", front=("layers.0*", "layers.1*", "layers.2*"), output="output*",
                norm="norms.*", narrow=("layers.*", "output*"),
            ),
            1e-3, 0.03, (96, 80, 64, 48, 32, 24), 6, 400,
        ),
        Architecture(
            "mlp-residual", "held-out", "residual", "flat", ("blocks",), ("stem", "blocks"), "stem",
            _places(
                hidden="blocks.*", first="stem*", front=("stem*", "blocks.*"), output="output*",
                narrow=("blocks.*", "output*"), branch="blocks.*",
            ),
            1e-3, 0.02, (48,), 5, 400, initialized=False,
        ),
        Architecture(
            "cnn-plain", "held-out", "cnn", "image", ("features",), ("features[0]",), "features[0]",
            _places(
                hidden="features.*", first=("features.0*", "features.1*"), front="features.*", output="output*",
                norm="features.*", narrow=("features.*", "output*"),
            ),
            2e-3, 0.05, (12, 12, 16, 16), 4, 300,
        ),
        Architecture(
            "gru", "held-out", "recurrent", "rows", ("gru",), ("gru",), "gru",
            _places(
                hidden="gru*", first=("embedding*", "gru*"), front=("embedding*", "gru*"), output="output*",
                recurrent="gru*", narrow=("gru*", "output*"),
            ),
            4e-3, 0.3, (48,), 1, 390, initialized=False,
        ),
        Architecture(
            "transformer-fused", "held-out", "transformer", "rows", ("encoder",), ("embed", "encoder.layers[0]"),
            "embed",
            _places(
                hidden="encoder.*", first="embed*", front=("embed*", "position", "encoder*"), output="output*",
                attention="encoder.layers.*self_attn*", narrow=("encoder*", "norm*", "output*"),
                branch="encoder.layers.*",
            ),
            2e-3, 0.1, (32,), 2, 312, initialized=False,
        ),
        Architecture(
            "autoencoder-conv", "held-out", "autoencoder", "image", ("encoder", "decoder"), ("encoder",),
            "encoder[0]",
            _places(
                hidden=("encoder.*", "decoder.*"), first=("encoder.0*", "encoder.1*"), front="encoder*",
                output="output*", norm=("encoder.1*", "decoder.1*"), narrow=("encoder*", "decoder*"),
            ),
            4e-3, 2.0, (16, 8), 2, 400,
        ),
    )
}  # fmt: skip

DATA_SETS = {
    data.name: data
    for data in (
        DataSet("mnist", "tune", 784, 10, 5000, 2000, 0.8, side=28, folder="mnist-10k"),
        DataSet("blobs", "tune", 10, 6, 2000, 1000, 0.8, sklearn="make_blobs"),
        DataSet("circles", "tune", 2, 2, 2000, 1000, 0.9, sklearn="make_circles"),
        DataSet("digits", "held-out", 64, 10, 1347, 450, 0.85, side=8, sklearn="load_digits"),
        DataSet("rt-polarity", "held-out", 1000, 2, 8000, 2000, 0.62, folder="rt-polarity"),
        DataSet("breast-cancer", "held-out", 30, 2, 426, 143, 0.9, sklearn="load_breast_cancer"),
    )
}

LEARNED_SCORE = 0.3
"""Explained variance above which an autoencoder counts as one that learns; the mean image explains 0."""

SPLIT: Mapping[tuple[str, str], Split] = MappingProxyType(
    {
        ("mlp-deep", "mnist"): "tune",
        ("mlp-deep", "blobs"): "tune",
        ("mlp-deep", "circles"): "tune",
        ("cnn-residual", "mnist"): "tune",
        ("lstm", "mnist"): "tune",
        ("transformer-handwritten", "mnist"): "tune",
        ("autoencoder", "mnist"): "tune",
        ("autoencoder", "blobs"): "tune",
        ("mlp-shallow", "digits"): "held-out",
        ("mlp-shallow", "breast-cancer"): "held-out",
        ("mlp-shallow", "rt-polarity"): "held-out",
        ("mlp-tapered", "digits"): "held-out",
        ("mlp-tapered", "breast-cancer"): "held-out",
        ("mlp-residual", "digits"): "held-out",
        ("mlp-residual", "breast-cancer"): "held-out",
        ("cnn-plain", "digits"): "held-out",
        ("gru", "digits"): "held-out",
        ("gru", "rt-polarity"): "held-out",
        ("transformer-fused", "digits"): "held-out",
        ("transformer-fused", "rt-polarity"): "held-out",
        ("autoencoder-conv", "digits"): "held-out",
    }
)
"""The pairs of architecture and data there are. Neither an architecture nor a data set is in both splits."""
