"""Run where vLLM is installed: parse a server's flags with vLLM's own parser, starting nothing.

Standard input: {"flags": [...], "engine": [names]}; standard output, last line: {"error": text or null}. engine: keyword
arguments that Ray hands on: to vLLM's engine, or to its front end (ray `vllm_models.py`, VLLMEngineConfig.from_llm_config).
"""

import contextlib
import dataclasses
import io
import json
import sys


def main() -> None:
    """Parse the flags on standard input."""
    asked = json.load(sys.stdin)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers import cli_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = cli_args.make_arg_parser(FlexibleArgumentParser(prog="vllm"))
    said = io.StringIO()
    error = None
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(asked["flags"])
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        error = lines[-1].partition("error:")[2].strip() if lines else "vLLM's parser refuses it"
    except ValueError as problem:
        error = str(problem).splitlines()[0]
    known = {field.name for part in (AsyncEngineArgs, cli_args.FrontendArgs) for field in dataclasses.fields(part)}
    unknown = [name for name in asked["engine"] if name not in known]
    if error is None and unknown:
        error = f"not an argument of vLLM's engine or front end: {', '.join(unknown)}"
    print(json.dumps({"error": error}))


if __name__ == "__main__":
    main()
