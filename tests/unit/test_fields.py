import math

import pytest
from acme_regression.v1 import regression_pb2
from google.protobuf.message import Message

from luthier import fields
from luthier.errors import InvalidArgument
from luthier.tasks.recommendation.v1 import recommendation_pb2
from luthier.tasks.text_classification.v1 import text_classification_pb2
from luthier.v1 import task_pb2, training_pb2

CONFIGS: list[type[Message]] = [regression_pb2.Config, recommendation_pb2.Config, text_classification_pb2.Config]


def test_describe_says_what_the_proto_says() -> None:
    epochs, rate, hidden = fields.describe(regression_pb2.Config)
    assert epochs == task_pb2.TaskField(
        field="epochs", type="int32", help="Passes over all rows.", default="200", min=1, max=10000
    )
    assert (rate.type, rate.default, hidden.field) == ("double", "0.01", "hidden")


def test_describe_marks_repeated_and_required_columns() -> None:
    features, target = fields.describe(regression_pb2.Example)
    assert (features.type, features.required, target.type) == ("repeated double", True, "double")
    assert not features.HasField("min")


def test_describe_lists_the_names_of_an_enum() -> None:
    algorithm = fields.describe(recommendation_pb2.Config)[0]
    assert algorithm.type == "luthier.tasks.recommendation.v1.Algorithm"
    assert algorithm.choices[0] == "ALGORITHM_AUTO"
    assert algorithm.default in algorithm.choices


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.DESCRIPTOR.full_name)
def test_resolve_fills_what_is_unset(kind: type[Message]) -> None:
    config = kind()
    fields.resolve(config)
    for field in fields.describe(kind):
        assert config.HasField(field.field)


def test_defaults_are_values_of_their_fields() -> None:
    config = text_classification_pb2.Config()
    fields.resolve(config)
    assert (config.epochs, config.learning_rate) == (4, 0.0002)
    assert config.precision == training_pb2.PRECISION_AUTO
    interactions = recommendation_pb2.Config()
    fields.resolve(interactions)
    assert interactions.use_weights is False


def test_resolve_keeps_what_is_set_even_to_zero() -> None:
    config = text_classification_pb2.Config(epochs=0, dropout=0.0)
    fields.resolve(config)
    assert (config.epochs, config.dropout) == (0, 0.0)


@pytest.mark.parametrize("epochs", [1, 10000])
def test_bounds_are_allowed_themselves(epochs: int) -> None:
    fields.resolve(regression_pb2.Config(epochs=epochs))


def test_every_value_out_of_bounds_is_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        fields.resolve(regression_pb2.Config(epochs=0, rate=1.5, hidden=16))
    assert caught.value.violations == {
        "config.epochs": "0 is below the smallest value, 1",
        "config.rate": "1.5 is above the largest value, 1",
    }


def test_nan_is_within_no_bounds() -> None:
    with pytest.raises(InvalidArgument) as caught:
        fields.resolve(regression_pb2.Config(rate=math.nan))
    assert caught.value.violations.keys() == {"config.rate"}


def test_an_unknown_number_is_no_value_of_an_enum() -> None:
    with pytest.raises(InvalidArgument, match="99 is not a value of Precision"):
        fields.resolve(text_classification_pb2.Config(precision=99))  # type: ignore[arg-type]
