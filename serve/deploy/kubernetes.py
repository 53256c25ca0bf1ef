"""Kubernetes manifests of a plan: the guard as a ConfigMap, Deployment, Service, disruption budget, autoscaler, scraping."""

from typing import Any

from tunegate.serve.deploy.guard import GUARD_FILES, guard_text
from tunegate.serve.deploy.plan import PORT, PRE_STOP_S, START_S, DeployPlan
from tunegate.serve.vllm_flags import SERVER_MODULE

VLLM_IMAGE = "vllm/vllm-openai:v0.32.0"
PROBE_S = 10
WAITING = "vllm:num_requests_waiting"
SHRINK = {"scaleDown": {"stabilizationWindowSeconds": 600}}
# prometheus-adapter serves a metric to the HPA under a name without a colon.
ADAPTED = "vllm_num_requests_waiting"


def manifests(plan: DeployPlan) -> list[dict[str, Any]]:
    """Every object, in the order to apply them."""
    scaled = {"hpa": [hpa(plan)], "keda": [keda(plan)], "none": []}[plan.options.autoscale]
    return [config_map(plan), deployment(plan), service(plan), budget(plan), monitor(plan), *scaled]


def _meta(plan: DeployPlan, suffix: str = "") -> dict[str, Any]:
    return {"name": f"{plan.name}{suffix}", "labels": _labels(plan)}


def _labels(plan: DeployPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": plan.name, "app.kubernetes.io/managed-by": "tunegate"}


def _selector(plan: DeployPlan) -> dict[str, str]:
    return {"app.kubernetes.io/name": plan.name}


def config_map(plan: DeployPlan) -> dict[str, Any]:
    """The guard's modules: stock vLLM images do not have them."""
    data = {name.rpartition("/")[2]: guard_text(name) for name in GUARD_FILES}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(plan, "-guard"), "data": data}


def deployment(plan: DeployPlan) -> dict[str, Any]:
    """The pods. A new one is ready before an old one goes; an old one leaves the balancer, then drains, then ends."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(plan),
        "spec": {
            # An autoscaler's number is its own: every `kubectl apply` would set it back.
            **({"replicas": plan.options.replicas} if plan.options.autoscale == "none" else {}),
            "progressDeadlineSeconds": START_S + 300,
            "selector": {"matchLabels": _selector(plan)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": _labels(plan)}, "spec": pod(plan)},
        },
    }


def pod(plan: DeployPlan) -> dict[str, Any]:
    """One copy of the server."""
    container = {
        "name": "vllm",
        "image": plan.options.image or VLLM_IMAGE,
        "command": ["python3", "-m", SERVER_MODULE],
        "args": [_literal(flag) for flag in plan.server_flags],
        "env": environment(plan),
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": resources(plan),
        "volumeMounts": [{"name": name, **mount} for name, _, mount in volumes(plan)],
        # The start may take long and must not be cut short; a restart costs minutes, so only a long silence brings one.
        "startupProbe": {**_health(), "periodSeconds": PROBE_S, "failureThreshold": START_S // PROBE_S},
        "readinessProbe": {**_health(), "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**_health(), "periodSeconds": 30, "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_S)]}}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "terminationGracePeriodSeconds": plan.grace_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service called `vllm` would set VLLM_PORT, which vLLM reads as its own
        "containers": [container],
        "volumes": [{"name": name, **source} for name, source, _ in volumes(plan)],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    }


def environment(plan: DeployPlan) -> list[dict[str, Any]]:
    """Settings by value, secrets by reference."""
    found: list[dict[str, Any]] = [{"name": k, "value": _literal(v)} for k, v in plan.environment.items()]
    found.append({"name": "TUNEGATE_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}})
    found.append({"name": "TUNEGATE_API_KEY", "valueFrom": {"secretKeyRef": {"name": plan.secret, "key": "api-key"}}})
    if not plan.mounted:
        token = {"name": plan.secret, "key": "hf-token", "optional": True}
        found.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
    return found


def _literal(text: str) -> str:
    """Text as it is: Kubernetes would put a variable of the container in the place of `$(NAME)`, and read `$$` as `$`."""
    return text.replace("$", "$$")


def resources(plan: DeployPlan) -> dict[str, Any]:
    """GPUs and memory: requests equal limits, for a pod that is never throttled or moved for another's sake."""
    amounts = {
        "cpu": str(2 + 2 * plan.gpus),
        "memory": f"{plan.memory_gb}G",
        **({"nvidia.com/gpu": str(plan.gpus)} if plan.gpus else {}),
    }
    return {"requests": amounts, "limits": dict(amounts)}


def volumes(plan: DeployPlan) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, source, mount): the guard, shared memory for the workers, and the model or a cache for it."""
    guard = {"configMap": {"name": f"{plan.name}-guard"}}
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("guard", guard, {"mountPath": "/opt/tunegate/tunegate/serve", "readOnly": True}),
        ("shm", {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}}, {"mountPath": "/dev/shm"}),  # noqa: S108
    ]
    if plan.mounted:
        claim = {"persistentVolumeClaim": {"claimName": plan.volume, "readOnly": True}}
        return [*found, ("model", claim, {"mountPath": plan.source, "readOnly": True})]
    return [*found, ("cache", {"emptyDir": {}}, {"mountPath": "/root/.cache"})]


def _health() -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}


def service(plan: DeployPlan) -> dict[str, Any]:
    """The address inside the cluster."""
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    spec = {"selector": _selector(plan), "ports": ports, "type": "ClusterIP"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(plan), "spec": spec}


def budget(plan: DeployPlan) -> dict[str, Any]:
    """Node drains take one copy at a time; with a single one they may take it, or nodes could never be drained."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _selector(plan)}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": _meta(plan), "spec": spec}


def monitor(plan: DeployPlan) -> dict[str, Any]:
    """Scraping by the Prometheus operator, which needs the key as everyone does."""
    authorization = {"type": "Bearer", "credentials": {"name": plan.secret, "key": "api-key"}}
    endpoint = {"port": "http", "path": "/metrics", "interval": "15s", "authorization": authorization}
    # The job is called `tunegate`, as our alerts ask for it.
    spec = {
        "jobLabel": "app.kubernetes.io/managed-by",
        "selector": {"matchLabels": _selector(plan)},
        "endpoints": [endpoint],
    }
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor", "metadata": _meta(plan), "spec": spec}


def hpa(plan: DeployPlan) -> dict[str, Any]:
    """Growth by waiting requests a copy; needs prometheus-adapter to serve the metric under ADAPTED."""
    target = {"type": "AverageValue", "averageValue": str(plan.options.queue)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _meta(plan),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": plan.name},
            "minReplicas": plan.options.replicas,
            "maxReplicas": plan.options.max_replicas,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": ADAPTED}, "target": target}}],
            "behavior": SHRINK,
        },
    }


def keda(plan: DeployPlan) -> dict[str, Any]:
    """Growth by waiting requests in all, over the number a copy may have."""
    query = f'sum({WAITING}{{service="{plan.name}"}})'
    metadata = {"serverAddress": plan.options.prometheus, "query": query, "threshold": str(plan.options.queue)}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _meta(plan),
        "spec": {
            "scaleTargetRef": {"name": plan.name},
            "minReplicaCount": plan.options.replicas,
            "maxReplicaCount": plan.options.max_replicas,
            "pollingInterval": 15,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": SHRINK}},
            "triggers": [{"type": "prometheus", "metadata": metadata}],
        },
    }
