"""The dashboards against Grafana's own schema, whose types drop what they do not know."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARDS = sorted((Path(__file__).parents[1] / "grafana/dashboards").glob("*.json"))


def changed(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """Places of everything in `given` that `kept` does not have."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from changed(value, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from changed(one, other, f"{place}[{number}]")
    elif given != kept:
        yield place


def foreign(dashboard: dict[str, Any]) -> list[str]:
    """Places in a dashboard that Grafana's schema does not know."""
    register_default_plugins()
    return list(changed(dashboard, json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))))


@pytest.mark.parametrize("path", DASHBOARDS, ids=[path.stem for path in DASHBOARDS])
def test_grafana_knows_every_key(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert foreign(copy.deepcopy(dashboard)) == []
    assert len(dashboard["panels"]) > 3


def test_unknown_keys_are_found() -> None:
    dashboard = json.loads(DASHBOARDS[0].read_text())
    panel = next(i for i, panel in enumerate(dashboard["panels"]) if panel["type"] == "timeseries")
    dashboard["panels"][panel]["fieldConfig"]["defaults"]["custom"] = {"lineWidth": 1, "lineWidht": 2}
    dashboard["refreshh"] = "5s"
    assert sorted(foreign(dashboard)) == [f".panels[{panel}].fieldConfig.defaults.custom.lineWidht", ".refreshh"]
