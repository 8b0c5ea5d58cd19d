"""MLflow, read back by its own client."""

from pathlib import Path

import pytest

from desat.errors import DesatError
from desat.show.export import exporter
from desat.show.export.exporter import Order
from desat.show.export.formats import FORMATS
from desat.show.export.mlflow_run import LONGEST_KEY, Keys
from desat.show.export.moments import Stream
from tests.records import write_record
from tests.show.export.runs import BEGAN, STARTED, small_run


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow counts its users unless it is told not to."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.filterwarnings("ignore")  # of MLflow's database layer
def test_a_run_has_the_values_of_the_record_as_metrics_and_its_facts(tmp_path: Path) -> None:
    with write_record(tmp_path / "run", small_run(metric="../f1"), started=STARTED, budget=0.01) as record:
        told = FORMATS["mlflow"].export(record, Order(tmp_path / "store", "trials"), lambda progress: None)
        moments = [moment for _, found in Stream().read(record) for moment in found]
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("trials")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id in told
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert (run.info.start_time, run.info.end_time) == (int(1000 * BEGAN), int(1000 * (BEGAN + 2.5)))
    assert run.data.params["budget"] == "0.01"
    assert run.data.tags["desat.verdict"] in ("healthy", "warning", "error")
    assert "mlflow.note.content" in run.data.tags
    for tag in ("loss", "saturated/net.3", "update_ratio/net.0.weight", "momentum/1/SGD"):
        expected = [(int(1000 * one.time), one.step, one.values[tag]) for one in moments if tag in one.values]
        found = client.get_metric_history(run.info.run_id, tag)
        assert sorted((one.timestamp, one.step, one.value) for one in found) == expected, tag
    metric = client.get_metric_history(run.info.run_id, "metric/_/f1")
    assert sorted((one.step, one.value) for one in metric) == [(-1, 0.1), (3, 0.7)]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "store"}


def test_names_that_mlflow_does_not_take_are_made_fit_and_stay_apart() -> None:
    keys = Keys()
    assert keys.of("rms/train.py:7 torch.tanh (net)") == "rms/train.py:7 torch.tanh _net_"
    assert keys.of("rms/train.py:7 torch.tanh [net]") == "rms/train.py:7 torch.tanh _net__2"
    assert keys.of("rms/train.py:7 torch.tanh (net)") == "rms/train.py:7 torch.tanh _net_"
    assert keys.of("metric/../../x") == "metric/_/_/x"
    long = {keys.of(f"rms/{'a' * 300}{number}") for number in range(3)}
    assert len(long) == 3
    assert max(map(len, long)) == LONGEST_KEY


def test_what_the_library_raises_is_one_line() -> None:
    with pytest.raises(DesatError, match="no route to the server"), exporter.of_the_library():
        raise ConnectionError("no route\nto the server")
    with pytest.raises(DesatError, match="ended early: TimeoutError"), exporter.of_the_library():
        raise TimeoutError
