"""TensorBoard: event files with scalars, histograms of magnitudes, and the findings as text.

Written by TensorBoard's own writer, without TensorFlow or PyTorch. Scalars are float32, as TensorBoard keeps them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from desat.errors import DesatError
from desat.show.export.exporter import Order
from desat.show.export.facts import Facts
from desat.show.export.findings_text import facts_text, findings_text
from desat.show.export.moments import Moment, bucket_limits

SUFFIX = ".desat"
"""Ends the names of event files that desat wrote, of which --overwrite may replace those of earlier exports."""

WAITING = 1000
"""Events that wait for the writer's thread."""


def open_tensorboard(order: Order, facts: Facts) -> "TensorBoardSink":
    """Raises DesatError where the folder holds an export already, or cannot be written."""
    earlier = event_files(order.place)
    if earlier and not order.overwrite:
        raise DesatError(f"{order.place} holds an export already: choose another place, or pass --overwrite")
    try:
        order.place.mkdir(parents=True, exist_ok=True)
        sink = TensorBoardSink(order.place, facts)
        for path in earlier:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise DesatError(f"cannot write to {order.place}: {error.strerror}; choose another place") from error
    return sink


def event_files(place: Path) -> list[Path]:
    """The event files in a folder that desat wrote."""
    return sorted(place.glob(f"events.out.tfevents.*{SUFFIX}"))


class TensorBoardSink:
    """Writes one event a moment to a new file in `place`."""

    def __init__(self, place: Path, facts: Facts) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2, types_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.told = str(place)
        self._proto: Any = summary_pb2
        self._events: Any = event_pb2
        self._types: Any = types_pb2
        self._writer = EventFileWriter(str(place), max_queue_size=WAITING, filename_suffix=SUFFIX)
        self._limits = bucket_limits().tolist()
        self._last = (0, facts.began)

    def write(self, moment: Moment) -> None:
        summary: Any = self._proto.Summary()
        for tag, value in moment.values.items():
            summary.value.add(tag=tag, simple_value=value)
        for tag, counts in moment.histograms.items():
            summary.value.add(tag=tag, histo=self._histogram(counts))
        self._add(moment.step, moment.time, summary)
        self._last = (moment.step, moment.time)

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, facts: Facts) -> None:
        """The run's settings as hyperparameters; settings, results and findings as text."""
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        settings = facts.settings()
        self._add(*self._last, hparams_pb(settings, trial_id=str(settings["run"])))
        texts = {"desat/run": facts_text(settings | facts.results()), "desat/findings": findings_text(facts)}
        summary: Any = self._proto.Summary()
        for tag, text in texts.items():
            self._add_text(summary.value.add(tag=tag), text)
        self._add(*self._last, summary)
        self._writer.close()

    def _add(self, step: int, time: float, summary: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time, step=step, summary=summary))

    def _add_text(self, value: Any, text: str) -> None:
        from tensorboard.plugins.text.metadata import create_summary_metadata

        metadata: Any = create_summary_metadata(display_name=None, description=None)
        value.metadata.CopyFrom(metadata)
        value.tensor.dtype = self._types.DT_STRING
        value.tensor.string_val.append(text.encode())

    def _histogram(self, counts: NDArray[np.float64]) -> Any:
        """From the first filled bucket to the last.

        The sums, which the record does not have, are of the middles of the buckets. What lies below the lowest bucket
        counts from 0 on.
        """
        filled = np.flatnonzero(counts)
        if not len(filled):
            return self._proto.HistogramProto()
        first, last = int(filled[0]), int(filled[-1])
        limits = self._limits[first : last + 1]
        inside = counts[first : last + 1]
        middles = 0.75 * np.array(limits)
        return self._proto.HistogramProto(
            min=0.5 * limits[0] if first else 0.0, max=limits[-1], num=inside.sum(), sum=inside @ middles,
            sum_squares=inside @ middles**2, bucket_limit=limits, bucket=inside.tolist(),
        )  # fmt: skip
