"""What programs read is strict JSON whatever a table held."""

import json

from analysis.runs import strictjson


def test_unknown_numbers_are_null_at_any_depth() -> None:
    value = {"a": float("nan"), "b": [1.5, (float("inf"), None, True)]}
    assert json.loads(strictjson.dumps(value), parse_constant=lambda name: name) == {
        "a": None,
        "b": [1.5, [None, None, True]],
    }
