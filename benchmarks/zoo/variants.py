"""Healthy variants: what competent people write differently, applied to every pair where it makes sense."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.zoo.parts import ARCHITECTURES
from benchmarks.zoo.recipe import Recipe, changed, plain_recipe


@dataclass(frozen=True)
class Variant:
    """A healthy way to write a script: changes of the plain recipe, and of which plain recipes it makes sense."""

    name: str
    changes: Mapping[str, Any]
    suits: Callable[[Recipe], bool] = lambda recipe: True

    def recipe(self, architecture: str, data: str, seed: int) -> Recipe | None:
        """The healthy recipe; None where the variant does not suit the pair."""
        plain = plain_recipe(architecture, data, seed)
        if not self.suits(plain):
            return None
        changes = dict(self.changes)
        if "frozen" in changes:
            changes["frozen"] = (ARCHITECTURES[architecture].first,)
        if ARCHITECTURES[architecture].family == "recurrent" and changes.get("optimizer") == "sgd":
            changes.setdefault("clip", 1.0)
        return changed(plain, changes)


def _in(*families: str) -> Callable[[Recipe], bool]:
    return lambda recipe: ARCHITECTURES[recipe.architecture].family in families


def _has_activation(recipe: Recipe) -> bool:
    return _in("mlp", "cnn", "autoencoder")(recipe)


def _has_functional_choice(recipe: Recipe) -> bool:
    return not _in("recurrent")(recipe)


def _is_shallow(recipe: Recipe) -> bool:
    return recipe.architecture in ("mlp-shallow", "autoencoder", "autoencoder-conv") and recipe.data != "blobs"


def _may_be_normed(recipe: Recipe) -> bool:
    return _has_activation(recipe) and not recipe.norm


def _is_not_words(recipe: Recipe) -> bool:
    return recipe.has_float_inputs  # embeddings of words that are rare learn by Adam alone, in a few hundred steps


def _recurs_over_numbers(recipe: Recipe) -> bool:
    return _in("recurrent")(recipe) and _is_not_words(recipe)


def _bears_random_features(recipe: Recipe) -> bool:
    # A random projection of a bag of words, or of two numbers, loses what is to be learned.
    return recipe.data not in ("circles", "rt-polarity") and not _in("recurrent")(recipe)


def _is_not_circles(recipe: Recipe) -> bool:
    return recipe.data != "circles"  # two inputs bear no dropout, and need all of a network


_UNGATED = {"clip": 1.0, "rate_factor": 0.25, "steps_factor": 1.8}
"""A recurrent network without gates, as one writes it today: orthogonal weights, clipped gradients, a smaller rate."""

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("plain", {}),
        Variant("sgd", {"optimizer": "sgd"}, _is_not_words),
        Variant("tanh", {"activation": "tanh"}, _has_activation),
        Variant("tanh-sgd", {"activation": "tanh", "optimizer": "sgd"}, _in("mlp")),
        Variant("sigmoid", {"activation": "sigmoid"}, _is_shallow),
        Variant("gelu", {"activation": "gelu"}, _has_functional_choice),
        Variant(
            "silu", {"activation": "silu"},
            lambda recipe: _has_functional_choice(recipe) and recipe.architecture != "transformer-fused",
        ),
        Variant("leaky", {"activation": "leaky"}, _has_activation),
        Variant("norm", {"norm": True}, _may_be_normed),
        Variant("norm-sgd", {"norm": True, "optimizer": "sgd"}, lambda r: _may_be_normed(r) and _in("mlp", "cnn")(r)),
        Variant("dropout", {"dropout": 0.2, "steps_factor": 1.3}, _is_not_circles),
        Variant("adamw", {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"}),
        Variant("rmsprop", {"optimizer": "rmsprop", "rate_factor": 0.5}),
        Variant("autocast", {"precision": "autocast"}),
        Variant("clipped", {"clip": 1.0}),
        Variant("clipped-sgd", {"clip": 1.0, "optimizer": "sgd"}, _is_not_words),
        Variant("frozen-first", {"frozen": ()}, _bears_random_features),
        Variant("freeze-later", {"freeze_later": True}, lambda recipe: not _in("recurrent")(recipe)),
        Variant("accumulate", {"accumulate": 4, "batch": 16}),
        Variant("small-batch", {"batch": 8, "rate_factor": 0.5}, lambda recipe: not recipe.norm),
        Variant("large-batch", {"batch": 128, "rate_factor": 1.5}),
        Variant("long", {"steps_factor": 2.5}),
        Variant("warmup", {"schedule": "warmup", "clip": 1.0}),
        Variant("half-rate", {"rate_factor": 0.5, "steps_factor": 1.3}),
        Variant("double-rate", {"rate_factor": 2.0}, lambda recipe: recipe.architecture != "mlp-deep"),
        Variant("weak-decay", {"weight_decay": 1e-4, "optimizer": "sgd", "schedule": "cosine"}, _is_not_words),
        Variant("vanilla", {"vanilla": "relu", **_UNGATED}, _recurs_over_numbers),
        Variant("hyperbolic", {"vanilla": "tanh", **_UNGATED}, _recurs_over_numbers),
        Variant("forget-bias", {"gate_bias": ("forget", 1.0)}, lambda recipe: recipe.architecture == "lstm"),
        Variant("bfloat16", {"precision": "bfloat16"}, lambda r: _in("mlp")(r) and _is_not_circles(r)),
    )
}  # fmt: skip

SEEDED = {"plain", "sgd", "tanh", "norm"}
"""Variants that run with every seed, so that the spread of a healthy result over seeds is known."""
SEEDS = (0, 1, 2)
