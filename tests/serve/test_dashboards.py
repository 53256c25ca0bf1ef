"""The Grafana dashboard, the scrape and the alerts: their form by Grafana's own model and a PromQL parser, every metric
in vLLM's real output."""

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml

from tunegate.serve.deploy.kubernetes import monitor, service
from tunegate.serve.engine_watch import EngineWatch
from tunegate.serve.metrics import parse
from tunegate.serve.middleware import TICK_S, GuardSettings

promql_parser = pytest.importorskip("promql_parser")
HERE = Path(__file__).parents[2] / "serve" / "dashboards"
DASHBOARD = json.loads((HERE / "grafana.json").read_text())
ALERTS = yaml.safe_load((HERE / "alerts.yaml").read_text())
REAL = (Path(__file__).parent / "vllm_metrics.txt").read_text()
PANELS = DASHBOARD["panels"]
EXPRESSIONS = [t["expr"] for p in PANELS for t in p["targets"]]
ALERT_EXPRESSIONS = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]


def lost(given, kept, path=""):
    """Keys that Grafana's model does not know, or changes."""
    if isinstance(given, dict):
        missing = [f"{path}/{k}" for k in given if not isinstance(kept, dict) or k not in kept]
        return missing + [
            m for k in given if f"{path}/{k}" not in missing for m in lost(given[k], kept[k], f"{path}/{k}")
        ]
    if isinstance(given, list):
        return [m for i, (a, b) in enumerate(zip(given, kept, strict=True)) for m in lost(a, b, f"{path}/{i}")]
    return [] if given == kept else [f"{path}: {given!r} is {kept!r}"]


def through_the_model(document):
    sdk = pytest.importorskip("grafana_foundation_sdk.models.dashboard")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    return json.loads(JSONEncoder(sort_keys=True).encode(sdk.Dashboard.from_json(document)))


def test_grafanas_model_knows_every_key_and_would_tell_a_typo():
    assert lost(DASHBOARD, through_the_model(DASHBOARD)) == []
    broken = json.loads(json.dumps(DASHBOARD))
    broken["panels"][0]["gridPoss"] = broken["panels"][0].pop("gridPos")
    assert lost(broken, through_the_model(broken)) == ["/panels/0/gridPoss"]


def without_variables(expression):
    return expression.replace("$__rate_interval", "1m").replace("$model", "m").replace("$instance", "i")


@pytest.mark.parametrize("expression", [*EXPRESSIONS, *ALERT_EXPRESSIONS])
def test_every_query_parses_and_asks_for_metrics_there_are(expression):
    promql_parser.parse(without_variables(expression))
    names = {sample.name for sample in parse(REAL)} | {"up"}
    asked = set(re.findall(r"\bvllm:\w+|\bup\b", expression))
    assert asked
    assert asked <= names


def test_labels_that_are_asked_for_are_there():
    by_name = {}
    for sample in parse(REAL):
        by_name.setdefault(sample.name, set()).update(sample.labels)
    for expression in EXPRESSIONS:
        for name, inner in re.findall(r"(vllm:\w+)\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)=", inner)) - {"instance"}  # Prometheus adds the instance
            assert asked <= by_name[name], name
    assert "finished_reason" in by_name["vllm:request_success_total"]


def test_the_parser_tells_a_broken_query():
    with pytest.raises(ValueError):
        promql_parser.parse("sum(rate(vllm:x[1m])")


def test_panels_are_numbered_once_and_do_not_overlap():
    assert len({p["id"] for p in PANELS}) == len(PANELS) >= 12
    taken = set()
    for place in (p["gridPos"] for p in PANELS):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
    assert all(p["description"] and p["title"] for p in PANELS)


def test_the_scrape_holds_no_key_and_names_the_alerts():
    scrape = yaml.safe_load((HERE / "prometheus.yaml").read_text())
    assert scrape["rule_files"] == ["alerts.yaml"]
    (job,) = scrape["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert set(job["authorization"]) == {"type", "credentials_file"}
    assert all({"alert", "expr", "for", "annotations"} == set(r) for g in ALERTS["groups"] for r in g["rules"])


def alert(name):
    (found,) = (rule["expr"] for group in ALERTS["groups"] for rule in group["rules"] if rule["alert"] == name)
    return found


def test_an_engine_that_nobody_asks_writes_a_token_within_the_alerts_window():
    """So that none in two minutes is a hang: a gauge of running requests, which a hung engine does not write, is not needed."""
    expression = alert("EngineHangs")
    assert set(re.findall(r"vllm:[^[]+", expression)) == {'vllm:generation_tokens_total{job="tunegate"}'}, (
        "a server without our guard is silent while nobody asks"
    )
    window_s = 60 * int(re.search(r"\[(\d+)m\]", expression)[1])
    settings = GuardSettings()

    async def idle():
        tokens, seen = [0.0], []

        async def probe():
            tokens[0] += 1

        watch = EngineWatch(probe, quiet_s=settings.quiet_s, hang_s=settings.hang_s)
        for _ in range(int(10 * window_s / TICK_S)):
            watch.step(tokens[0], TICK_S)
            await asyncio.sleep(0)
            seen.append(tokens[0])
        return seen

    seen = asyncio.run(idle())
    ticks = int(window_s / TICK_S)
    # rate() is 0 only where every sample of the window is the same.
    assert all(seen[i + ticks - 30] - seen[i] >= 5 for i in range(len(seen) - ticks))


def test_a_server_in_kubernetes_is_scraped_under_the_name_that_the_alert_asks_for(tiny_model):
    from tunegate.advisor.gpus import find_gpu
    from tunegate.core.model_source import resolve
    from tunegate.serve.deploy.plan import DeployOptions, make_plan

    plan = make_plan(resolve(str(tiny_model)), DeployOptions(gpu=find_gpu("L4"), max_model_len=256))
    job = service(plan)["metadata"]["labels"][monitor(plan)["spec"]["jobLabel"]]
    assert alert("ServerDown") == f'up{{job="{job}"}} == 0'
