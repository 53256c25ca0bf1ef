"""Run where ray[serve] and vLLM are: check a Serve config by Ray's own schemas. Argument: the YAML file.

Standard output, last line: {"error": text or null}. Ray 2.60's schemas check values and let unknown fields pass, so these are
looked for here. `LLMConfig` is checked too where Ray can import an engine.
"""

import json
import sys
from pathlib import Path


def unknown(model, given, where=""):
    """Fields given that the validated model does not have, as paths."""
    if isinstance(given, list) and isinstance(model, list):
        return [
            path for i, (m, g) in enumerate(zip(model, given, strict=True)) for path in unknown(m, g, f"{where}/{i}")
        ]
    if not isinstance(given, dict) or not hasattr(type(model), "model_fields"):
        return []
    fields = type(model).model_fields
    missing = [f"{where}/{key}" for key in given if key not in fields]
    return missing + [
        path for key in given if key in fields for path in unknown(getattr(model, key), given[key], f"{where}/{key}")
    ]


def main() -> None:
    """Check the file named on the command line."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    error, checked = None, ["ServeDeploySchema"]
    try:
        if paths := unknown(ServeDeploySchema(**document), document):
            raise ValueError(f"unknown field {', '.join(paths)}")
        try:
            from ray.serve.llm import LLMConfig
        except ImportError:
            pass
        else:
            for application in document["applications"]:
                for config in application["args"]["llm_configs"]:
                    LLMConfig(**config)
            checked.append("LLMConfig")
    except (ValueError, TypeError) as problem:
        error = " ".join(str(problem).split())[:300]
    print(json.dumps({"error": error, "checked": checked}))


if __name__ == "__main__":
    main()
