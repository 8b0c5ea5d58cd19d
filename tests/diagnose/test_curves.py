import pytest

from desat.diagnose.curves import shape_of
from desat.record.rows import Site
from tests.records import RELU_CURVE, SIGMOID_CURVE


@pytest.mark.parametrize(
    ("curve", "shape"),
    [(SIGMOID_CURVE, "bounded"), (RELU_CURVE, "rectifier"), (None, None), ("{}", None), ("[1]", None), ("{", None)],
)
def test_the_class_is_the_records_and_none_where_it_cannot_be_read(curve: str | None, shape: str | None) -> None:
    assert shape_of(Site(0, "f", "nonlinearity", "f", None, 0, curve)) == shape
