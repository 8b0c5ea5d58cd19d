"""All faults, code by code."""

from benchmarks.zoo.faults import (
    Fault,
    anything,
    architectures,
    both,
    families,
    is_binary,
    is_classifier,
    is_multiclass,
    levels,
    one,
    takes_numbers,
)
from benchmarks.zoo.recipe import Recipe

MLP = families("mlp")
DEEP = architectures("mlp-deep", "mlp-tapered", "cnn-plain")
LAYERED = architectures("mlp-deep", "mlp-tapered", "mlp-shallow", "cnn-plain", "autoencoder")
RESIDUAL = architectures("cnn-residual", "transformer-handwritten", "mlp-residual", "transformer-fused")
RECURRENT = families("recurrent")
TRANSFORMER = families("transformer")
AUTOENCODER = families("autoencoder")
NORMED = architectures("mlp-deep", "mlp-tapered", "mlp-shallow", "cnn-plain", "cnn-residual")


def _has_raw_inputs(recipe: Recipe) -> bool:
    return recipe.has_float_inputs and recipe.architecture != "autoencoder-conv"


def _is_not_separable(recipe: Recipe) -> bool:
    return recipe.data != "breast-cancer"  # a plane divides its classes well, whatever becomes of the hidden layers


SIGNAL = (
    Fault("saturated-activation", "weight-scale", "tanh", levels("gain", 4.0, 10.0, 40.0), "hidden", LAYERED,
          also=("exploding-signal", "exploding-gradient")),
    Fault("saturated-activation", "input-scale", "tanh", levels("input_factor", 20.0, 200.0, 5000.0), "first",
          both(LAYERED, takes_numbers, is_classifier), also=("unscaled-input",)),
    Fault("saturated-activation", "bias", "tanh", levels("bias", 2.0, 4.0, 10.0), "hidden", LAYERED),
    Fault("saturated-activation", "learning-rate-jump", "tanh-sgd",
          levels("jump_factor", 30.0, 300.0, 3000.0, jump_at=0.5), "hidden", MLP, "jump",
          ("update-too-large", "loss-diverging")),
    Fault("dead-units", "bias", "plain", levels("bias", -2.0, -6.0, -20.0), "hidden", LAYERED),
    Fault("dead-units", "learning-rate-spike", "plain",
          levels("jump_factor", 30.0, 200.0, 2000.0, jump_at=0.4, jump_length=5), "hidden", LAYERED, "jump",
          ("update-too-large", "loss-diverging")),
    Fault("vanishing-gradient", "sigmoid-depth", "sgd", one("moderate", activation="sigmoid"), "hidden",
          architectures("mlp-deep", "mlp-tapered", "cnn-plain"), also=("saturated-activation",)),
    Fault("vanishing-gradient", "small-weights", "sgd", levels("gain", 0.5, 0.2, 0.05), "hidden", DEEP,
          also=("vanishing-signal",)),
    Fault("vanishing-gradient", "detach", "plain", one("severe", detach=True), "front", anything,
          also=("untrained-parameter",)),
    Fault("exploding-gradient", "large-weights", "sgd", levels("gain", 2.0, 4.0, 10.0), "hidden", DEEP,
          also=("exploding-signal", "non-finite", "loss-diverging", "update-too-large")),
    Fault("exploding-gradient", "recurrent-weights", "vanilla",
          levels("recurrent_gain", 1.15, 1.4, 2.0, clip=0.0, optimizer="sgd"), "recurrent", RECURRENT,
          also=("exploding-signal", "non-finite", "loss-diverging")),
    Fault("vanishing-signal", "weight-scale", "plain", levels("gain", 0.5, 0.2, 0.03), "hidden", DEEP,
          also=("vanishing-gradient",)),
    Fault("vanishing-signal", "input-scale", "sgd", levels("input_factor", 0.03, 1e-3, 1e-6), "first",
          both(takes_numbers, families("mlp", "autoencoder", "recurrent"), is_classifier),
          also=("unscaled-input", "vanishing-gradient")),
    Fault("exploding-signal", "weight-scale", "plain", levels("gain", 2.0, 5.0, 20.0), "hidden", DEEP,
          also=("exploding-gradient", "saturated-output")),
    Fault("exploding-signal", "input-scale", "plain", levels("input_factor", 100.0, 1e4, 1e7), "first",
          both(takes_numbers, families("mlp", "cnn"), _is_not_separable, lambda recipe: not recipe.norm),
          also=("unscaled-input", "exploding-gradient", "saturated-output")),
    Fault("symmetric-units", "constant-weights", "plain",
          {"mild": {"constant": 0.1, "constant_where": "first"}, "moderate": {"constant": 0.05},
           "severe": {"constant": 0.02, "constant_where": "all"}}, "hidden",
          both(takes_numbers, families("mlp", "cnn", "autoencoder", "recurrent"))),
    Fault("symmetric-units", "zero-weights", "plain",
          {"moderate": {"constant": 0.0}, "severe": {"constant": 0.0, "constant_where": "all"}}, "hidden",
          both(takes_numbers, families("mlp", "recurrent", "autoencoder"))),
)  # fmt: skip

NUMBERS = (
    Fault("non-finite", "log-of-zero", "plain", levels("sharpness", 20.0, 100.0, 1000.0, loss="log by hand"), "output",
          is_classifier, "unknown", ("mismatched-loss", "saturated-output")),
    Fault("non-finite", "overflow", "plain", levels("sharpness", 20.0, 100.0, 1000.0, loss="exp by hand"), "output",
          is_classifier, "unknown", ("mismatched-loss", "saturated-output")),
    Fault("non-finite", "bad-row", "plain",
          {"moderate": {"bad_rows": 1}, "severe": {"bad_rows": 20, "bad_value": "inf"}}, "first",
          both(takes_numbers, is_classifier), "unknown", ("unscaled-input",)),
    Fault("low-precision-range", "float16-parameters", "sgd",
          levels("rate_factor", 0.02, 1e-3, 1e-4, precision="float16"), "network",
          both(MLP, takes_numbers), "training", ("update-too-small", "non-finite")),
    Fault("low-precision-range", "float16-adam", "plain", one("severe", precision="float16"), "network",
          both(MLP, takes_numbers), "training", ("non-finite", "degenerate-optimizer")),
    Fault("low-precision-range", "bfloat16-updates", "sgd",
          levels("rate_factor", 0.1, 0.01, 1e-3, precision="bfloat16"), "network",
          families("mlp", "transformer", "cnn"), "training", ("update-too-small",)),
    Fault("unscaled-input", "raw-features", "plain",
          {"moderate": {"raw_inputs": True}, "severe": {"raw_inputs": True, "input_factor": 1000.0}}, "first",
          both(_has_raw_inputs, families("mlp", "autoencoder"))),
    Fault("unscaled-input", "raw-features-squashed", "tanh",
          {"moderate": {"raw_inputs": True}, "severe": {"raw_inputs": True, "input_factor": 1000.0}}, "first",
          both(_has_raw_inputs, MLP), also=("saturated-activation",)),
    Fault("unscaled-input", "raw-features-sgd", "sgd",
          {"moderate": {"raw_inputs": True}, "severe": {"raw_inputs": True, "input_factor": 1000.0}}, "first",
          both(_has_raw_inputs, families("mlp", "recurrent")),
          also=("non-finite", "loss-diverging", "exploding-gradient", "dead-units")),
)  # fmt: skip

UPDATES = (
    Fault("loss-diverging", "learning-rate", "sgd", levels("rate_factor", 30.0, 100.0, 1000.0), "network", anything,
          "training", ("update-too-large", "non-finite", "exploding-gradient", "dead-units", "sharp-curvature",
                       "loss-oscillating")),
    Fault("loss-diverging", "learning-rate-jump", "sgd", levels("jump_factor", 30.0, 100.0, 1000.0, jump_at=0.5),
          "network", anything, "jump", ("update-too-large", "non-finite", "exploding-gradient", "dead-units",
                                        "sharp-curvature", "loss-oscillating")),
    Fault("loss-oscillating", "learning-rate", "sgd", levels("rate_factor", 5.0, 10.0, 20.0), "network", anything,
          "training", ("update-too-large", "loss-diverging", "sharp-curvature", "dead-units", "non-finite")),
    Fault("update-too-large", "learning-rate", "plain", levels("rate_factor", 20.0, 100.0, 1000.0), "network", anything,
          "training", ("loss-diverging", "loss-oscillating", "dead-units", "saturated-activation", "saturated-gate")),
    Fault("update-too-small", "learning-rate", "plain", levels("rate_factor", 0.03, 1e-3, 1e-5), "network", anything,
          "training", ("loss-plateau",)),
    Fault("update-too-small", "learning-rate-sgd", "sgd", levels("rate_factor", 0.03, 1e-3, 1e-5), "network", anything,
          "training", ("loss-plateau",)),
    Fault("update-too-small", "learning-rate-decay", "plain", levels("jump_factor", 1e-2, 1e-4, 1e-6, jump_at=0.05),
          "network", anything, "jump", ("loss-plateau", "degenerate-optimizer")),
    Fault("sharp-curvature", "learning-rate", "sgd", levels("rate_factor", 10.0, 30.0, 100.0, momentum=0.0, batch=256),
          "network", anything, "training", ("update-too-large", "loss-oscillating", "loss-diverging", "dead-units",
                                            "non-finite")),
    Fault("clipping-dominates", "max-norm", "sgd", levels("clip", 1e-2, 1e-3, 1e-4), "network", anything, "training",
          ("update-too-small",)),
    Fault("degenerate-optimizer", "adam-epsilon", "plain", levels("epsilon", 1.0, 100.0, 1e4), "network", anything,
          "training", ("update-too-small",)),
    Fault("degenerate-optimizer", "adam-betas", "plain",
          {"mild": {"betas": (0.999, 0.9)}, "moderate": {"betas": (0.9999, 0.5)}, "severe": {"betas": (0.9999, 0.01)}},
          "network", anything, "training", ("update-too-large", "loss-oscillating")),
    Fault("degenerate-optimizer", "momentum", "sgd", levels("momentum", 0.99, 0.999, 1.0), "network", anything,
          "training", ("update-too-large", "loss-oscillating", "loss-diverging")),
    Fault("untrained-parameter", "not-in-optimizer", "plain", one("mild", left_out="output"), "output", anything),
    Fault("untrained-parameter", "not-in-optimizer", "plain", one("severe", trained="output"), "body", anything),
    Fault("untrained-parameter", "requires-grad", "plain", one("mild", frozen="front"), "front", anything),
    Fault("untrained-parameter", "requires-grad", "plain", one("severe", frozen="hidden"), "hidden", anything),
    Fault("untrained-parameter", "detach", "plain", one("severe", detach=True), "front",
          families("recurrent", "transformer", "autoencoder"), also=("vanishing-gradient",)),
)  # fmt: skip

STRUCTURE = (
    Fault("loss-plateau", "shuffled-labels", "plain", levels("label_noise", 0.5, 0.9, 1.0), "network", anything),
    Fault("loss-plateau", "label-order", "plain",
          {"moderate": {"label_order": "shifted"}, "severe": {"label_order": "sorted"}}, "network", is_classifier),
    Fault("saturated-gate", "gate-bias", "plain", levels("gate", 4.0, 8.0, 20.0), "recurrent", RECURRENT),
    Fault("saturated-gate", "recurrent-weights", "plain", levels("recurrent_gain", 10.0, 40.0, 200.0), "recurrent",
          RECURRENT, also=("exploding-gradient",)),
    Fault("collapsed-attention", "query-key-scale", "plain", levels("attention_gain", 4.0, 12.0, 60.0), "attention",
          TRANSFORMER),
    Fault("collapsed-attention", "missing-scale", "plain",
          levels("attention_gain", 3.0, 8.0, 40.0, attention_scaled=False), "attention",
          architectures("transformer-handwritten")),
    Fault("saturated-output", "output-scale", "plain", levels("output_gain", 20.0, 200.0, 5000.0), "output", anything),
    Fault("saturated-output", "output-scale-sgd", "sgd", levels("output_gain", 10.0, 50.0, 500.0), "output", anything,
          also=("exploding-gradient",)),
    Fault("degenerate-batchnorm", "batch-size", "norm-sgd", levels("batch", 4, 3, 2), "norm",
          both(NORMED, lambda recipe: recipe.architecture != "cnn-residual")),
    Fault("degenerate-batchnorm", "batch-size-residual", "sgd", levels("batch", 4, 2), "norm",
          architectures("cnn-residual")),
    Fault("degenerate-batchnorm", "momentum", "norm", levels("norm_momentum", 1e-3, 1e-4, 1e-6), "norm",
          both(NORMED, lambda recipe: recipe.architecture != "cnn-residual")),
    Fault("degenerate-batchnorm", "momentum-residual", "plain", levels("norm_momentum", 1e-3, 1e-4, 1e-6), "norm",
          architectures("cnn-residual")),
    Fault("residual-imbalance", "branch-scale", "plain", levels("branch_scale", 10.0, 100.0, 1000.0), "branch",
          RESIDUAL, also=("exploding-signal",)),
    Fault("residual-imbalance", "branch-scale-sgd", "sgd", levels("branch_scale", 2.0, 10.0, 300.0), "branch",
          RESIDUAL,
          also=("exploding-signal", "exploding-gradient")),
    Fault("mismatched-loss", "softmax-twice", "plain",
          levels("sharpness", 1.0, 10.0, 100.0, loss="softmax twice"), "output", is_multiclass,
          also=("saturated-output",)),
    Fault("mismatched-loss", "sigmoid-twice", "plain",
          levels("sharpness", 1.0, 10.0, 100.0, loss="sigmoid twice"), "output", is_binary, also=("saturated-output",)),
    Fault("mismatched-loss", "class-ids", "plain", one("severe", loss="class ids"), "output", is_multiclass),
    Fault("mismatched-loss", "nll-of-logits", "plain", one("severe", loss="nll of logits"), "output", is_multiclass,
          also=("loss-diverging",)),
    Fault("mismatched-loss", "nll-of-probabilities", "sgd", one("mild", loss="nll of probabilities"), "output",
          is_multiclass),
    Fault("collapsed-rank", "bottleneck", "plain", levels("narrow", 3, 2, 1), "narrow", both(MLP, is_multiclass)),
    Fault("collapsed-rank", "bottleneck-code", "plain", levels("narrow", 3, 2, 1), "narrow", AUTOENCODER),
    Fault("collapsed-rank", "identical-features", "plain", levels("identical", 0.9, 0.999, 1.0), "narrow", anything),
    Fault("collapsed-rank", "weight-decay", "adamw", levels("weight_decay", 30.0, 100.0, 300.0), "network", anything,
          "training"),
)  # fmt: skip

FAULTS = (*SIGNAL, *NUMBERS, *UPDATES, *STRUCTURE)

CODES = (
    "saturated-activation", "dead-units", "vanishing-gradient", "exploding-gradient", "vanishing-signal",
    "exploding-signal", "symmetric-units", "non-finite", "loss-diverging", "loss-oscillating", "loss-plateau",
    "update-too-small", "update-too-large", "saturated-gate", "collapsed-attention", "saturated-output",
    "unscaled-input", "low-precision-range", "degenerate-batchnorm", "residual-imbalance", "untrained-parameter",
    "clipping-dominates", "degenerate-optimizer", "mismatched-loss", "collapsed-rank", "sharp-curvature",
)  # fmt: skip
"""The finding codes, as the design lists them."""
