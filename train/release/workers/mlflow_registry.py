"""One job on MLflow's model registry; runs in an environment of its own and imports nothing of ours.

python mlflow_registry.py JOB.json  with {action: histories|add|set, uri, name, result, alias, entry, folders}.
"""

import json
import logging
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

TAG = "tunegate.promotion"
LONGEST_TAG = 4500  # MLflow keeps 5000 characters of a model's tag


def main(path):
    """Do the job and write its result file."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    logging.disable(logging.INFO)
    import mlflow
    from mlflow.tracking import MlflowClient

    mlflow.set_tracking_uri(job["uri"])
    mlflow.set_registry_uri(job["uri"])
    client = MlflowClient(tracking_uri=job["uri"], registry_uri=job["uri"])
    result = {"histories": histories, "add": add, "set": point}[job["action"]](client, job)
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


def histories(client, job):
    """{alias: its promotions}, each as (tag, its text)."""
    from mlflow.exceptions import MlflowException

    try:
        tags = client.get_registered_model(job["name"]).tags
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {"histories": {}}
        raise
    found = {}
    for tag, value in sorted(tags.items(), key=lambda item: item[0].rpartition("/")[2]):
        if tag.startswith(TAG + "/"):
            found.setdefault(tag.split("/")[1], []).append((tag, value))
    return {"histories": found}


def add(client, job):
    """A run with the three folders as artifacts, a version made of it, the alias, the tag; the tag last."""
    from mlflow.exceptions import MlflowException

    entry, name = job["entry"], job["name"]
    experiment = client.get_experiment_by_name(name)
    identity = experiment.experiment_id if experiment else client.create_experiment(name)
    run = client.create_run(identity, run_name=f"{job['alias']}-{entry['digest'][:12]}")
    for part, folder in job["folders"].items():
        client.log_artifacts(run.info.run_id, folder, part)
    client.log_dict(run.info.run_id, entry, "promotion.json")
    for metric, value in entry["evidence"].get("metrics", {}).items():
        if isinstance(value, int | float):
            client.log_metric(run.info.run_id, metric, value)
    client.set_terminated(run.info.run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{run.info.artifact_uri}/release"
    tags = {"digest": entry["digest"], "gate": entry["evidence"]["gate"], "by": entry["by"]}
    version = client.create_model_version(name, source, run.info.run_id, tags=tags)
    job["entry"] = {**entry, "path": f"models:/{name}/{version.version}"}
    return point(client, job)


def point(client, job):
    """Let the alias mean the version that the entry names, and tell it."""
    entry, name, alias = job["entry"], job["name"], job["alias"]
    client.set_registered_model_alias(name, alias, entry["path"].rpartition("/")[2])
    # microseconds order the history; the rest keeps two writers at once apart
    tag = f"{TAG}/{alias}/{datetime.now(UTC).strftime('%Y%m%dT%H%M%S.%f')}-{uuid.uuid4().hex[:8]}"
    text = json.dumps(entry, separators=(",", ":"))
    if len(text) > LONGEST_TAG:  # the whole of it is promotion.json in the version's run
        kept = {k: v for k, v in entry["evidence"].items() if k != "conditions"}
        text = json.dumps({**entry, "evidence": kept}, separators=(",", ":"))
    if len(text) > LONGEST_TAG:
        text = json.dumps({**entry, "evidence": kept, "facts": {"name": entry["facts"].get("name")}})
    client.set_registered_model_tag(name, tag, text)
    return {"entry": entry}


if __name__ == "__main__":
    main(sys.argv[1])
