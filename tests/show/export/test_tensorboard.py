"""Event files, read back by TensorBoard's own reader."""

from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.util import tensor_util

from desat.errors import DesatError
from desat.record.reader import Record
from desat.show.export.exporter import Order
from desat.show.export.formats import FORMATS
from desat.show.export.moments import Stream
from desat.show.export.tensorboard_events import event_files
from tests.records import deep_network, write_record
from tests.show.export.runs import SAMPLED, STARTED, small_run


def export(record: Record, place: Path, **options) -> EventAccumulator:
    told = FORMATS["tensorboard"].export(record, Order(place, **options), lambda progress: None)
    assert told == str(place)
    return read(place)


def read(place: Path) -> EventAccumulator:
    everything = {"scalars": 0, "tensors": 0, "histograms": 0}
    return EventAccumulator(str(place), size_guidance=everything).Reload()


def scalars(events: EventAccumulator) -> dict[str, list[tuple[float, int, float]]]:
    return {tag: [(one.wall_time, one.step, one.value) for one in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]}  # fmt: skip


def test_scalars_are_the_values_of_the_record_at_their_steps_and_times(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(), started=STARTED) as record:
        events = export(record, tmp_path / "events")
        expected: dict[str, list[tuple[float, int, float]]] = {}
        for _, moments in Stream().read(record):
            for moment in moments:
                for tag, value in moment.values.items():
                    expected.setdefault(tag, []).append((moment.time, moment.step, float(np.float32(value))))
    assert scalars(events) == expected
    assert expected["metric/accuracy"][0][1] == -1


def test_histograms_have_the_powers_of_two_for_limits(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(), started=STARTED) as record:
        events = export(record, tmp_path / "events")
    found = events.Histograms("input_magnitudes/net.3")
    assert [one.step for one in found] == list(SAMPLED)
    histogram = found[0].histogram_value
    assert list(histogram.bucket_limit) == [0.5, 1.0, 2.0]
    assert list(histogram.bucket) == [3.0, 0.0, 5.0]
    assert (histogram.min, histogram.max, histogram.num) == (0.25, 2.0, 8.0)


def test_settings_are_hyperparameters_and_findings_are_text(tmp_path: Path) -> None:
    sick = deep_network(layers=12, layer_gain=0.2, loss=lambda step: 2.3)
    with write_record(tmp_path / "<b>run", sick, script="a|b.py", budget=0.01) as record:
        events = export(record, tmp_path / "events")
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    settings = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["budget"].number_value == 0.01
    assert settings["script"].string_value == "a|b.py"
    told = {tag: tensor_util.make_ndarray(events.Tensors(tag)[0].tensor_proto).item().decode()
            for tag in ("desat/run", "desat/findings")}  # fmt: skip
    assert "| verdict | error |" in told["desat/run"]
    assert "&#60;b&#62;run" in told["desat/run"]
    assert "a&#124;b.py" in told["desat/run"]
    assert "| error | vanishing-gradient |" in told["desat/findings"]


def test_an_export_is_replaced_only_when_asked_and_foreign_events_stay(tmp_path: Path) -> None:
    place = tmp_path / "events"
    place.mkdir()
    (place / "events.out.tfevents.1.foreign").write_bytes(b"")
    with write_record(tmp_path / "run", small_run()) as record:
        export(record, place)
        (first,) = event_files(place)
        with pytest.raises(DesatError, match="--overwrite"):
            export(record, place)
        export(record, place, overwrite=True)
        (second,) = event_files(place)
    assert first != second
    assert (place / "events.out.tfevents.1.foreign").exists()


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with write_record(tmp_path / "run", small_run()) as record, pytest.raises(DesatError, match="cannot write"):
        export(record, tmp_path / "file" / "events")


def test_a_record_in_which_nothing_was_measured_is_exported_too(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", []) as record:
        events = export(record, tmp_path / "events")
    assert events.Tags()["scalars"] == []
    assert "desat/findings" in events.Tags()["tensors"]
