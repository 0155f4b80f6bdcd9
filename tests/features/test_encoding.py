from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilrec.data.features import fit_encoder
from distilrec.data.schema import Feature
from distilrec.errors import ColumnTypeError, InvalidValueError
from distilrec.features.encoding import FeatureEncoder

FEATURES = (
    Feature("colour", "categorical"),
    Feature("tags", "multi"),
    Feature("price", "numeric"),
    Feature("title", "text"),
    Feature("picture", "vector"),
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "colour": st.one_of(st.none(), st.sampled_from(["red", "blue", "1"])),
            "tags": st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "c"]), max_size=3)),
            "price": st.one_of(st.none(), st.floats(-1e6, 1e6)),
            "title": st.one_of(st.none(), st.text(max_size=30)),
            "picture": st.one_of(st.none(), st.lists(st.floats(-1, 1), min_size=3, max_size=3)),
        }
    ),
    min_size=1,
    max_size=15,
)


@pytest.mark.slow
@settings(deadline=None)
@given(seen=rows, new=rows)
def test_every_row_encodes_inside_the_vector(seen, new):
    encoder = fit_encoder(seen, FEATURES)
    matrix = encoder.encode_rows([*seen, *new])
    assert matrix.columns.min(initial=0) >= 0
    assert matrix.columns.max(initial=0) < encoder.width == len(encoder.column_names())
    assert np.isfinite(matrix.weights).all()
    assert np.abs(matrix.weights).max(initial=0) <= 1
    dense = matrix.dense()
    names = encoder.column_names()
    colour = [n for n, name in enumerate(names) if name.startswith("colour=")]
    tags = [n for n, name in enumerate(names) if name.startswith("tags=")]
    assert (dense[:, colour].sum(1) == 1).all()
    np.testing.assert_allclose(np.linalg.norm(dense[:, tags], axis=1), 1, rtol=1e-6)


@given(seen=rows)
def test_an_encoder_survives_json(seen):
    encoder = fit_encoder(seen, FEATURES)
    again = msgspec.json.decode(msgspec.json.encode(encoder), type=FeatureEncoder)
    assert again == encoder
    assert all(again.encode(row) == encoder.encode(row) for row in seen)


@pytest.mark.slow
@given(prices=st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=50))
def test_numbers_keep_their_order(prices):
    encoder = fit_encoder([{"price": price} for price in prices], (Feature("price", "numeric"),))
    encoded = [encoder.encode({"price": price})[0][1] for price in sorted(prices)]
    assert encoded == sorted(encoded)
    assert encoder.encode({"price": max(prices) + 1})[0] == (0, 1.0)


def test_unknown_and_missing_values():
    encoder = fit_encoder(
        [{"colour": "red", "tags": ["a"], "price": 1.0}, {"price": 3.0}], FEATURES[:3]
    )
    assert encoder.column_names() == [
        "colour=unknown",
        "colour=red",
        "tags=unknown",
        "tags=a",
        "price",
        "price missing",
    ]
    assert encoder.encode({"colour": "green", "tags": ["z"], "price": 2.0})[:2] == [
        (0, 1.0),
        (2, 1.0),
    ]
    assert encoder.encode({}) == [(0, 1.0), (2, 1.0), (5, 1.0)]
    assert encoder.encode({"price": 2.0})[2] == (4, pytest.approx(0.0))


def test_a_vector_is_taken_as_it_is():
    encoder = fit_encoder([{"picture": None}, {"picture": [0.5, -0.5]}], (FEATURES[2], FEATURES[4]))
    assert encoder.column_names()[2:] == ["picture[0]", "picture[1]"]
    assert (
        encoder.encode({"price": 1.0, "picture": [1, 2]})[1:]
        == encoder.encode({"price": 1.0, "picture": "1|2"})[1:]
    )
    assert encoder.encode({"picture": [1, 2]})[1:] == [(2, 1.0), (3, 2.0)]
    assert encoder.encode({"picture": None})[1:] == []
    with pytest.raises(
        InvalidValueError, match="'picture' holds a vector of 3 numbers, others hold 2"
    ):
        encoder.encode({"picture": [1, 2, 3]})
    with pytest.raises(InvalidValueError, match="feature 'picture' holds nan"):
        encoder.encode({"picture": [1, math.nan]})
    with pytest.raises(ColumnTypeError, match="'picture' is a vector, but holds 7"):
        encoder.encode({"picture": 7})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_must_be_finite(bad):
    encoder = fit_encoder([{"price": 1.0}], (Feature("price", "numeric"),))
    with pytest.raises(InvalidValueError, match="feature 'price' holds"):
        encoder.encode({"price": bad})
    with pytest.raises(ColumnTypeError, match="feature 'price' is numeric, but holds 'cheap'"):
        encoder.encode({"price": "cheap"})
