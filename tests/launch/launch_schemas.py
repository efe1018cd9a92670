"""Strict schemas of what we write, for the fields we use: anything else is refused.

Written from the types of JobSet v1alpha2, of Kubernetes' Job and Pod, and SkyPilot's
description of its YAML; only what launch/ needs stands here.
"""

from typing import Any

_COUNT = {"type": "integer", "minimum": 0}
_MANY = {"type": "integer", "minimum": 1}
_TEXT = {"type": "string", "minLength": 1}
_LABEL = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}
_CODES = {
    "type": "array",
    "items": {"type": "integer", "minimum": 1, "maximum": 255},
    "minItems": 1,
    "uniqueItems": True,
}


def _object(required: dict[str, Any], optional: dict[str, Any] | None = None):
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Any):
    return {"type": "array", "items": items, "minItems": 1}


def _map(keys: str, values: Any):
    return {
        "type": "object",
        "patternProperties": {keys: values},
        "additionalProperties": False,
        "minProperties": 1,
    }


_ENV = {
    "oneOf": [
        _object({"name": _TEXT, "value": {"type": "string"}}),
        _object(
            {
                "name": _TEXT,
                "valueFrom": _object({"fieldRef": _object({"fieldPath": _TEXT})}),
            }
        ),
    ]
}
_CONTAINER = _object(
    {"name": _LABEL, "image": _TEXT, "command": _list({"type": "string"})},
    {
        "env": _list(_ENV),
        "resources": _object(
            {"limits": _map(r"^(nvidia\.com/gpu|google\.com/tpu)$", _MANY)}
        ),
    },
)
_POD = _object(
    # A policy on exit codes needs restartPolicy Never.
    {"restartPolicy": {"const": "Never"}, "containers": _list(_CONTAINER)},
    {
        "terminationGracePeriodSeconds": _COUNT,
        "shareProcessNamespace": {"type": "boolean"},
        "nodeSelector": _map(
            r"^cloud\.google\.com/gke-(accelerator|tpu-accelerator|tpu-topology)$",
            _TEXT,
        ),
    },
)
_JOB = _object(
    {
        "parallelism": _MANY,
        "completions": _MANY,
        "backoffLimit": _COUNT,
        "template": _object({"spec": _POD}),
    },
    {
        "completionMode": {"enum": ["Indexed", "NonIndexed"]},
        "podFailurePolicy": _object(
            {
                "rules": _list(
                    _object(
                        {
                            "action": {"enum": ["FailJob", "Ignore", "Count"]},
                            "onExitCodes": _object(
                                {"operator": {"enum": ["In", "NotIn"]}},
                                {"values": _CODES, "containerName": _LABEL},
                            ),
                        }
                    )
                )
            }
        ),
    },
)
JOBSET = _object(
    {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": _object(
            {"name": _LABEL},
            {
                "namespace": _LABEL,
                "labels": _map(r"^kueue\.x-k8s\.io/queue-name$", _LABEL),
                "annotations": _map(
                    r"^alpha\.jobset\.sigs\.k8s\.io/exclusive-topology$", _TEXT
                ),
            },
        ),
        "spec": _object(
            {
                "replicatedJobs": _list(
                    _object(
                        {
                            "name": _LABEL,
                            "replicas": _MANY,
                            "template": _object({"spec": _JOB}),
                        }
                    )
                )
            },
            {
                "network": _object({"enableDNSHostnames": {"type": "boolean"}}),
                "failurePolicy": _object(
                    {"maxRestarts": _COUNT},
                    {
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                        "rules": _list(
                            _object(
                                {
                                    "name": {
                                        "type": "string",
                                        "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*"
                                        "[A-Za-z0-9_])?$",
                                    },
                                    "action": {"enum": ["FailJobSet", "RestartJobSet"]},
                                },
                                {
                                    "onJobFailureReasons": _list(
                                        {
                                            "enum": [
                                                "BackoffLimitExceeded",
                                                "DeadlineExceeded",
                                                "PodFailurePolicy",
                                            ]
                                        }
                                    )
                                },
                            )
                        ),
                    },
                ),
            },
        ),
    }
)
SKY = _object(
    {"name": _LABEL, "num_nodes": _MANY, "setup": _TEXT, "run": _TEXT},
    {
        "workdir": _TEXT,
        "resources": _object(
            {},
            {
                "infra": _TEXT,
                "accelerators": {"type": "string", "pattern": r"^[\w-]+(:\d+)?$"},
                "cpus": {"type": "string", "pattern": r"^\d+\+?$"},
                "use_spot": {"type": "boolean"},
                "job_recovery": _object(
                    # SkyPilot has 137 for itself.
                    {
                        "recover_on_exit_codes": {
                            **_CODES,
                            "not": {"contains": {"const": 137}},
                        }
                    }
                ),
            },
        ),
    },
)
