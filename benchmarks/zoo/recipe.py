"""A recipe: every choice that makes one training script. Its defaults are what a competent person would write."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from benchmarks.zoo.parts import ARCHITECTURES, DATA_SETS


@dataclass(frozen=True)
class Recipe:
    """Settings of a script; each that differs from its default is a variant of a healthy script, or a fault.

    rate_factor: on the learning rate of the optimizer. gain: on the standard deviation of hidden weights. jump_at:
    share of the run after which the learning rate is multiplied by jump_factor, for jump_length steps (0: for good).
    identical: share of the features replaced by their mean. sharpness: factor on the logits in a loss written by hand.
    """

    architecture: str
    data: str
    seed: int = 0
    # data
    batch: int = 64
    raw_inputs: bool = False
    input_factor: float = 1.0
    label_noise: float = 0.0
    label_order: str = "right"
    bad_rows: int = 0
    bad_value: str = "nan"
    # network
    activation: str = "relu"
    widths: tuple[int, ...] = ()
    depth: int = 0
    norm: bool = False
    norm_momentum: float | None = None
    dropout: float = 0.0
    gain: float = 1.0
    bias: float = 0.0
    constant: float | None = None
    constant_where: str = "hidden"
    output_gain: float = 1.0
    vanilla: str = ""
    recurrent_gain: float = 1.0
    gate_bias: tuple[str, float] | None = None
    attention_gain: float = 1.0
    attention_scaled: bool = True
    branch_scale: float = 1.0
    detach: bool = False
    identical: float = 0.0
    precision: str = "float32"
    # training
    optimizer: str = "adam"
    rate_factor: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    epsilon: float | None = None
    betas: tuple[float, float] | None = None
    clip: float = 0.0
    accumulate: int = 1
    steps_factor: float = 1.0
    schedule: str = "constant"
    jump_at: float | None = None
    jump_factor: float = 1.0
    jump_length: int = 0
    loss: str = ""
    sharpness: float = 1.0
    frozen: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    left_out: str = ""
    freeze_later: bool = False

    @property
    def is_autoencoder(self) -> bool:
        return ARCHITECTURES[self.architecture].family == "autoencoder"

    @property
    def has_float_inputs(self) -> bool:
        return self.data != "rt-polarity" or ARCHITECTURES[self.architecture].layout == "flat"

    @property
    def inputs(self) -> int:
        """Numbers that the first layer takes: of a sample, a row, or a word's embedding."""
        facts, layout = DATA_SETS[self.data], ARCHITECTURES[self.architecture].layout
        if layout == "rows":
            return facts.inputs // self.rows if facts.side else 32
        return facts.inputs

    @property
    def rows(self) -> int:
        """Parts that an image is cut into, where a network takes a sequence: its rows, of a large one two at a time."""
        side = DATA_SETS[self.data].side
        return side // 2 if ARCHITECTURES[self.architecture].family == "transformer" and side > 20 else side

    @property
    def outputs(self) -> int:
        classes = DATA_SETS[self.data].classes
        return 1 if classes == 2 or self.loss == "class ids" else classes

    @property
    def epochs(self) -> int:
        return max(1, round(self._batches / (DATA_SETS[self.data].training // self.batch)))

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.epochs * (DATA_SETS[self.data].training // self.batch) // self.accumulate

    @property
    def _batches(self) -> float:
        # A small batch gets more steps, so that as many samples are not needed but learning is.
        longer = 2.0 if self.batch < 32 or self.accumulate > 1 else 1.0
        return longer * self.steps_factor * ARCHITECTURES[self.architecture].steps

    @property
    def jump_step(self) -> int:
        return int(self.steps * (self.jump_at or 0.0))

    @property
    def learning_rate(self) -> float:
        facts = ARCHITECTURES[self.architecture]
        rate = facts.sgd_rate if self.optimizer == "sgd" else facts.adam_rate
        return float(f"{self.rate_factor * rate:.3g}")

    @property
    def optimizer_call(self) -> str:
        words = ["parameters", "lr=LEARNING_RATE"]
        if self.optimizer == "sgd" and self.momentum:
            words.append(f"momentum={self.momentum}")
        if self.weight_decay:
            words.append(f"weight_decay={self.weight_decay}")
        if self.epsilon is not None:
            words.append(f"eps={self.epsilon}")
        if self.betas is not None:
            words.append(f"betas={self.betas}")
        name = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSprop"}[self.optimizer]
        return f"torch.optim.{name}({', '.join(words)})"

    @property
    def norm_momentum_argument(self) -> str:
        return "" if self.norm_momentum is None else f", momentum={self.norm_momentum}"

    @property
    def is_initialized(self) -> bool:
        """Whether the script initializes hidden layers itself and does not leave them as PyTorch makes them."""
        changed = (
            self.gain != 1.0 or self.bias != 0.0 or (self.constant is not None and self.constant_where == "hidden")
        )
        return ARCHITECTURES[self.architecture].initialized or changed

    @property
    def initial_gain(self) -> float:
        """Standard deviation of a hidden weight times the root of its fan-in."""
        return round(self.gain * (1.0 if self.activation in ("tanh", "sigmoid") else math.sqrt(2.0)), 4)

    @property
    def surgeries(self) -> list[str]:
        """Lines that change weights of the finished network."""
        facts = ARCHITECTURES[self.architecture]
        lines = []
        if self.constant is not None and self.constant_where == "all":
            lines += ["for parameter in model.parameters():", f"    parameter.fill_({self.constant})"]
        if self.constant is not None and self.constant_where == "first":
            lines += [f"for parameter in model.{facts.first}.parameters():", f"    parameter.fill_({self.constant})"]
        if facts.family == "recurrent" and not self.vanilla and self.recurrent_gain != 1.0:
            lines.append(f"model.{self.architecture}.weight_hh_l0.mul_({self.recurrent_gain})")
        if self.gate_bias is not None:
            gate, value = self.gate_bias
            order = ("input", "forget", "cell", "output") if self.architecture == "lstm" else ("reset", "update", "new")
            size, start = self.widths[0], order.index(gate) * self.widths[0]
            lines.append(f"model.{self.architecture}.bias_ih_l0[{start}:{start + size}] = {value}")
        lines += self._attention_surgeries()
        if self.output_gain != 1.0:
            lines.append(f"model.output.weight.mul_({self.output_gain})")
        return lines

    def _attention_surgeries(self) -> list[str]:
        lines = []
        if self.architecture == "transformer-handwritten" and self.attention_gain != 1.0:
            lines += [
                "for block in model.blocks:",
                f"    block.attention.query.weight.mul_({self.attention_gain})",
                f"    block.attention.key.weight.mul_({self.attention_gain})",
            ]
        if self.architecture == "transformer-fused":
            if self.attention_gain != 1.0:
                lines += [
                    "for layer in model.encoder.layers:",
                    f"    layer.self_attn.in_proj_weight[:{2 * self.widths[0]}].mul_({self.attention_gain})",
                ]
            if self.branch_scale != 1.0:
                lines += [
                    "for layer in model.encoder.layers:",
                    f"    layer.self_attn.out_proj.weight.mul_({self.branch_scale})",
                    f"    layer.linear2.weight.mul_({self.branch_scale})",
                ]
        return lines


SETTINGS = frozenset(field.name for field in fields(Recipe))


def plain_recipe(architecture: str, data: str, seed: int) -> Recipe:
    """The healthy script of a pair, without any variant."""
    facts = ARCHITECTURES[architecture]
    labelled = "binary" if DATA_SETS[data].classes == 2 else "cross-entropy"
    recipe = Recipe(
        architecture, data, seed,
        widths=facts.widths,
        depth=facts.depth,
        norm=architecture == "cnn-residual",
        batch=32 if data in ("breast-cancer", "digits") else 64,
        loss="reconstruction" if facts.family == "autoencoder" else labelled,
    )  # fmt: skip
    if data == "blobs" and architecture == "autoencoder":
        return replace(recipe, widths=(64, 6), activation="tanh")
    return recipe


def changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other settings; the rate's factors multiply."""
    changes = dict(changes)
    if "rate_factor" in changes:
        changes["rate_factor"] *= recipe.rate_factor
    return replace(recipe, **changes)
