from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dylora_moe.errors import PoolError
from dylora_moe.records import Event, ExpertVersion, SkillRecord
from dylora_moe.storage import rows
from tests.storage.facts import event, expert, revision

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(VALUES)
def test_whatever_is_encoded_is_strict_json_and_decodes_to_the_same(value):
    text = json.dumps(rows.encode(value), allow_nan=False)
    assert rows.decode(json.loads(text)) == value


@pytest.mark.parametrize(
    ("values", "record"),
    [
        (rows.manifest_values(revision())["skills"][0], SkillRecord),
        (rows.version_values(expert()), ExpertVersion),
        (rows.event_values(event(), "now"), Event),
    ],
)
def test_no_field_of_a_record_is_left_out(values, record):
    assert {each.name for each in fields(record)} <= values.keys()


def test_nan_survives_strict_json():
    text = json.dumps(rows.encode({"loss": math.nan}), allow_nan=False)
    assert math.isnan(rows.decode(json.loads(text))["loss"])


def test_tuples_become_lists_and_keys_text():
    assert rows.encode({128: (1, 2)}) == {"128": [1, 2]}


def test_what_json_cannot_hold_is_refused():
    for value in (object(), {"a": {1, 2}}, [b"bytes"]):
        with pytest.raises(PoolError, match="cannot be stored as JSON"):
            rows.encode(value)
