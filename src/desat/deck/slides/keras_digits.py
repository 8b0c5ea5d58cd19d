"""Slide 12: the deck's convolutional network in Keras 3 on PyTorch, trained for real on digits, and watched."""

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from desat.api import watch
from desat.deck.history import History, accuracy_picture, loss_picture
from desat.deck.slide import MissingNeedError, Page, Reading, Settings, Slide, Statement, listed, require
from desat.deck.training import Data, digits
from desat.diagnose.engine import diagnose
from desat.record.reader import Record

SIZES = {True: (3, 2), False: (20, 5)}
"""Epochs at most, and epochs without a smaller validation loss that end the training, fast or not."""

NEEDED = {True: 0.8, False: 0.97}
"""Validation accuracy that counts as having learned to read, fast or not."""

BATCH = 32
VARIABLES = ("KERAS_BACKEND", "KERAS_HOME", "TF_FORCE_GPU_ALLOW_GROWTH")
"""Of the environment, which are set for Keras's import, or by it."""

AGREES = 0.02
"""Relative difference of the losses that Keras and desat each counted that counts as none."""


@dataclass(frozen=True)
class Run:
    """What Keras says of the training, and what desat saw of it. losses: mean of each epoch, from desat's record."""

    history: History
    losses: tuple[float, ...]
    steps: int
    verdict: str
    findings: tuple[str, ...]


def build(settings: Settings) -> Page:
    require("keras", "pip install 'desat[deck]'")
    data = digits(settings.seed)
    run = _train(settings, data)
    return Page(
        words=(
            "A convolutional network in Keras 3 on PyTorch: convolution, batch normalization, pooling, another "
            "convolution, a dense layer, dropout and a softmax, trained by `fit` on handwritten digits of 8 x 8 pixels "
            "until the validation gets no better.",
            "Keras steps without an optimizer of torch's; a step is over for desat where its backward pass ends. "
            "Nothing in the script is changed for that: `desat.watch(model)` stands around `fit`.",
        ),
        figures=(loss_picture(run.history), accuracy_picture(run.history)),
        statements=(_reads(settings, run, data), _seen(run, data), _judged(run)),
        readings=(
            Reading("Keras 3 documentation, Getting started", "https://keras.io/getting_started/"),
            Reading("Prechelt 1998, Early stopping: but when?", "https://doi.org/10.1007/3-540-49430-8_3"),
        ),
    )


@contextmanager
def keras_on_torch() -> Iterator[Any]:
    """Keras, with PyTorch behind it and on the CPU.

    It is imported here and not in a process of its own: it changes none of torch's defaults, and its import, which is
    mostly that of parts of torch, takes seconds that the deck has spent already. What it leaves are variables of the
    environment, which are put back, and a file in the home folder, which goes to a folder that is deleted.

    Raises MissingNeedError where the process uses Keras on something else.
    """
    before = {name: os.environ.get(name) for name in VARIABLES}
    with tempfile.TemporaryDirectory(prefix="desat-keras-") as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras's own: of NumPy's new calls that it does not follow yet
        try:
            os.environ.update(KERAS_BACKEND="torch", KERAS_HOME=home)
            import keras
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        if keras.backend.backend() != "torch":
            raise MissingNeedError(f"needs Keras on torch, this process has it on {keras.backend.backend()}")
        with keras.device("cpu"):
            yield keras
        keras.utils.clear_session()


def network(keras: Any) -> Any:
    """The network; takes (batch, 8, 8, 1), gives probabilities, (batch, 10)."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.BatchNormalization(momentum=0.9),  # the default, 0.99, takes more steps than there are
            layers.MaxPooling2D(),
            layers.Conv2D(64, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )


def _train(settings: Settings, data: Data) -> Run:
    epochs, patience = SIZES[settings.fast]
    images, held = (part.reshape(-1, 8, 8, 1).numpy() for part in (data.inputs, data.test_inputs))
    settings.progress("importing Keras", 0.0)
    with keras_on_torch() as keras, tempfile.TemporaryDirectory(prefix="desat-deck-") as place:
        keras.utils.set_random_seed(settings.seed)
        model = network(keras)
        model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        told = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: settings.progress(f"epoch {epoch + 1}", epoch / epochs)
        )
        stop = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
        directory = Path(place) / "run"
        with watch(model, every=10, run_dir=directory):
            said = model.fit(
                images,
                data.labels.numpy(),
                batch_size=BATCH,
                epochs=epochs,
                validation_data=(held, data.test_labels.numpy()),
                callbacks=[told, stop],
                verbose=0,
            ).history
        with Record(directory) as record:
            return _measured(record, said, len(images))


def _measured(record: Record, said: dict[str, list[float]], samples: int) -> Run:
    history = History(said["loss"], said["accuracy"], said["val_loss"], said["val_accuracy"])
    losses = record.steps()["loss"]
    each = -(-samples // BATCH)
    sizes = [BATCH] * (each - 1) + [samples - BATCH * (each - 1)]
    epochs = [losses[at : at + each] for at in range(0, len(losses), each)]
    diagnosis = diagnose(record)
    return Run(
        history=history,
        losses=tuple(
            sum(size * float(loss) for size, loss in zip(sizes, epoch, strict=False)) / samples for epoch in epochs
        ),
        steps=len(losses),
        verdict=diagnosis.verdict,
        findings=diagnosis.codes(),
    )


def _reads(settings: Settings, run: Run, data: Data) -> Statement:
    share = run.history.best_accuracy
    return Statement(
        claim="It learns to read.",
        sentence=f"Of {len(data.test_labels)} digits that it was not trained on it reads {share:.1%}, after "
        f"{run.history.best + 1} of {run.history.epochs} epochs.",
        holds=share > NEEDED[settings.fast],
        values={"accuracy": share, "epochs": float(run.history.epochs)},
    )


def _seen(run: Run, data: Data) -> Statement:
    expected = run.history.epochs * -(-len(data.labels) // BATCH)
    apart = max(abs(one / other - 1.0) for one, other in zip(run.losses, run.history.loss, strict=True))
    return Statement(
        claim="desat sees each step of Keras, and the same loss.",
        sentence=f"Keras took {expected} steps, desat counted {run.steps}. The mean losses of the epochs that desat "
        f"read off the backward passes differ from those that Keras reports by {apart:.2%} at most.",
        holds=run.steps == expected and apart < AGREES,
        values={"steps": float(run.steps), "expected_steps": float(expected), "apart": apart},
    )


def _judged(run: Run) -> Statement:
    found = listed(run.findings)
    why = (
        " The logarithm of a softmax is taken by hand in Keras's loss of probabilities; logits, with "
        "`from_logits=True`, are safer."
        if "mismatched-loss" in run.findings
        else ""
    )
    return Statement(
        claim="desat calls the training sound, with a note.",
        sentence=f"Its verdict is {run.verdict}; it notes {found}.{why}",
        holds=run.verdict == "healthy",
        values={"healthy": float(run.verdict == "healthy"), "noted": float("mismatched-loss" in run.findings)},
    )


SLIDE = Slide(12, "keras-digits", "Digits in Keras", build, rules=("mismatched-loss",))
