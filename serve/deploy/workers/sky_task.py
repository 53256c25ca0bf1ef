"""Run where skypilot is: parse a service's task by SkyPilot itself; no cloud is asked. Argument: the YAML file.

Standard output, last line: {"error": text or null}.
"""

import json
import sys


def main() -> None:
    """Parse the file named on the command line."""
    import sky

    error = None
    try:
        task = sky.Task.from_yaml(sys.argv[1])
        if task.service is None:
            error = "no service in it"
    except Exception as problem:
        error = " ".join(str(problem).split())[:300] or type(problem).__name__
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main()
