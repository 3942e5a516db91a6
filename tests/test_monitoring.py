"""The documents of monitoring: metrics as they are, alerts that come in time, a dashboard of what there is."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from amelia_flask import metrics
from amelia_flask.metrics import Metric
from tests.calls import create, ledger_of, url

DOCS = Path(__file__).parent.parent / "docs"
TABLE = (DOCS / "metrics.md").read_text()
ALERTS = (DOCS / "alerts.yml").read_text()
DASHBOARD = json.loads((DOCS / "grafana.json").read_text())
ROW = re.compile(r"^\| `(amelia_\w+)` \| (\w+) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)


@pytest.fixture
def known(client: FlaskClient) -> dict[str, Metric]:
    """Every metric that is given, by its name."""
    return {metric.name: metric for metric, _ in metrics.collect(ledger_of(client))}


def promtool(*arguments: str, text: str = "") -> str:
    """What Prometheus' own tool says, which must be content."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed; on Debian it is in the package prometheus")
    done = subprocess.run([tool, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_reads_what_is_given(client: FlaskClient) -> None:
    said = {"model": 'größer {als="1"}', "agent": 'a"gent\\', "input_tokens": 1, "output_tokens": 1}
    assert client.post(url(create(client), "token-usage"), json=said).status_code == 201
    client.get("/no/such/path")
    promtool("check", "metrics", text=client.get("/metrics").text)


def test_every_metric_is_described_as_it_is(known: dict[str, Metric]) -> None:
    rows = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in ROW.findall(TABLE)}
    assert rows == {metric.name: (metric.kind, metric.labels) for metric in known.values()}


def test_names_follow_the_rules_of_prometheus(known: dict[str, Metric]) -> None:
    for metric in known.values():
        assert re.fullmatch("amelia(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.meaning.endswith(".")


def samples(known: dict[str, Metric]) -> set[str]:
    """Every name that a sample has."""
    parts = ("_bucket", "_sum", "_count")
    ends = {metric.name: parts if metric.kind == "histogram" else ("",) for metric in known.values()}
    return {name + end for name in ends for end in ends[name]}


def expressions(node: Any) -> Iterator[str]:
    """Every PromQL expression of a dashboard."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "expr")
        yield from (found for value in node.values() for found in expressions(value))
    elif isinstance(node, list):
        yield from (found for value in node for found in expressions(value))


def test_the_dashboard_shows_what_there_is(known: dict[str, Metric]) -> None:
    shown = {name for expr in expressions(DASHBOARD) for name in re.findall(r"amelia_\w+", expr)}
    assert shown <= samples(known)
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in shown} == known.keys()


def test_the_panels_of_the_dashboard_stand_side_by_side() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        fields = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not fields & taken, panel["title"]
        assert max(x for x, _ in fields) < 24
        taken |= fields
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_alerts_watch_what_there_is(known: dict[str, Metric]) -> None:
    assert set(re.findall(r"amelia_\w+", ALERTS)) <= samples(known)


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(names())} rules found" in promtool("check", "rules", str(DOCS / "alerts.yml"))


def names() -> list[str]:
    return re.findall(r"alert: (\w+)", ALERTS)


# A day on which nothing is wrong: each series with its values, a minute apart, as promtool writes them.
MINUTES = 480
HEALTHY = {
    'up{job="amelia-flask"}': "1+0x480",
    "amelia_database_up": "1+0x480",
    "amelia_writer_queue_length": "3+0x480",
    "amelia_writer_group_size_count": "0+9x480",
    "amelia_writer_failures_total": "2+0x480",
    'amelia_http_requests_total{route="/r",method="GET",status="500"}': "1+0x480",
    'amelia_http_requests_total{route="/r",method="GET",status="503"}': "7+0x480",
    'amelia_http_requests_total{route="/r",method="GET",status="200"}': "0+600x480",
    'amelia_writer_commit_duration_seconds_bucket{le="0.1"}': "0+10x480",
    'amelia_writer_commit_duration_seconds_bucket{le="+Inf"}': "0+10x480",
    'amelia_http_request_duration_seconds_bucket{method="POST",le="1"}': "0+10x480",
    'amelia_http_request_duration_seconds_bucket{method="POST",le="+Inf"}': "0+10x480",
    "amelia_process_starts_total": "2+0x480",
    "amelia_database_free_bytes": "90000000000-1000000x480",
    'amelia_database_size_bytes{file="main"}': "900000000+1000000x480",
    'amelia_database_size_bytes{file="wal"}': "64000000+0x480",
    # promtool's clock begins at 0, so this backup is eight hours old at the end.
    "amelia_last_backup_timestamp_seconds": "0+0x480",
    'amelia_workflows{status="blocked"}': "0+0x480",
    'amelia_workflows{status="failed"}': "9+0x480",
    'amelia_usage_today_cost_dollars{model="m",agent="a"}': "60+0x480",
    'amelia_usage_today_unpriced_tokens{model="m",agent="a"}': "0+0x480",
}
# What goes wrong, and the one alert that comes for it.
TROUBLES: dict[str, dict[str, str]] = {
    "AmeliaDown": {'up{job="amelia-flask"}': "1+0x470 0+0x10"},
    "AmeliaDatabaseUnreadable": {"amelia_database_up": "1+0x470 0+0x10"},
    "AmeliaWriterStuck": {"amelia_writer_group_size_count": "7+0x480"},
    "AmeliaWriterFails": {"amelia_writer_failures_total": "2+0x478 3 3"},
    "AmeliaFaults": {'amelia_http_requests_total{route="/r",method="GET",status="500"}': "0+0x478 1 1"},
    "AmeliaUnavailable": {'amelia_http_requests_total{route="/r",method="GET",status="503"}': "0+12x480"},
    "AmeliaCommitsSlow": {'amelia_writer_commit_duration_seconds_bucket{le="0.1"}': "0+9x480"}
    | {'amelia_writer_commit_duration_seconds_bucket{le="0.25"}': "0+10x480"},
    "AmeliaWritesSlow": {'amelia_http_request_duration_seconds_bucket{method="POST",le="1"}': "0+9x480"}
    | {'amelia_http_request_duration_seconds_bucket{method="POST",le="2.5"}': "0+10x480"},
    "AmeliaQueueLong": {"amelia_writer_queue_length": "600+0x480"},
    "AmeliaProcessesDie": {"amelia_process_starts_total": "0+1x480"},
    "AmeliaDiskFull": {"amelia_database_free_bytes": "1000000000+0x480"},
    "AmeliaDiskFillsUp": {"amelia_database_free_bytes": "200000000000-200000000x480"},
    "AmeliaWalLarge": {'amelia_database_size_bytes{file="wal"}': "300000000+0x480"},
    "AmeliaBackupOld": {"amelia_last_backup_timestamp_seconds": "-70000+0x480"},
    "AmeliaWaitsForSomebody": {'amelia_workflows{status="blocked"}': "1+0x480"},
    "AmeliaSpendsMuch": {'amelia_usage_today_cost_dollars{model="m",agent="b"}': "41+0x480"},
    "AmeliaPriceUnknown": {'amelia_usage_today_unpriced_tokens{model="m",agent="a"}': "5+0x480"},
}


def case(alerts: list[str], trouble: dict[str, str]) -> dict[str, Any]:
    """That these alerts, and no others, are on at the end of a day with this trouble."""
    firing = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts]
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in (HEALTHY | trouble).items()],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": f"{MINUTES}m",
                "exp_samples": firing,
            }
        ],
    }


def test_each_alert_comes_when_it_should_and_then_alone(tmp_path: Path) -> None:
    assert sorted(TROUBLES) == sorted(names())
    cases = [case([], {}), *(case([alert], trouble) for alert, trouble in TROUBLES.items())]
    # JSON is YAML.
    file = tmp_path / "alerts.test.yml"
    file.write_text(json.dumps({"rule_files": [str(DOCS / "alerts.yml")], "tests": cases}))
    promtool("test", "rules", str(file))
