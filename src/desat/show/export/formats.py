"""The formats that a run can be exported to: a new one is a file beside this one and an entry here."""

from desat.errors import DesatError
from desat.show.export.csv_files import export_csv
from desat.show.export.exporter import Format, of_moments
from desat.show.export.json_document import export_json
from desat.show.export.mlflow_run import open_mlflow
from desat.show.export.parquet_files import export_parquet
from desat.show.export.tensorboard_events import open_tensorboard
from desat.show.export.wandb_run import open_wandb

FORMATS: dict[str, Format] = {
    "tensorboard": Format(of_moments(open_tensorboard), "tensorboard", "tensorboard", open_tensorboard),
    "wandb": Format(of_moments(open_wandb), ".", "wandb", open_wandb),
    "mlflow": Format(of_moments(open_mlflow), "mlflow", "mlflow"),
    "parquet": Format(export_parquet, "parquet", "pyarrow"),
    "csv": Format(export_csv, "csv"),
    "json": Format(export_json, "export.json"),
}


def find_format(name: str) -> Format:
    """Raises DesatError for one that does not exist."""
    if name not in FORMATS:
        raise DesatError(f"no format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def mirrored() -> list[str]:
    """The formats that a run can be mirrored to while it trains."""
    return [name for name, one in FORMATS.items() if one.open is not None]
