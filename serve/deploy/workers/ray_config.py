"""Run where ray[serve] and vLLM are: check a Serve config by Ray's own schemas. Argument: the YAML file.

Standard output, last line: {"error": text or null}. `LLMConfig` is checked too where Ray can import an engine.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Check the file named on the command line."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    document = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8"))
    error, checked = None, ["ServeDeploySchema"]
    try:
        ServeDeploySchema(**document)
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
