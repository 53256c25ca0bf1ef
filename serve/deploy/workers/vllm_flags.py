"""Run where vLLM is installed: parse a server's flags with vLLM's own parser, starting nothing.

Standard input: {"flags": [...], "for_ray": whether they become keyword arguments that Ray hands on, to vLLM's engine or to its
front end (ray `vllm_models.py`, VLLMEngineConfig.from_llm_config)}; standard output, last line: {"error": text or null,
"arguments": {name: value} of the flags that were given, as the parser reads them}.
"""

import argparse
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
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # what was not given is left out
    said = io.StringIO()
    error, found = None, {}
    try:
        with contextlib.redirect_stderr(said):
            found = vars(parser.parse_args(asked["flags"]))
            for action in parser._actions:  # a config's own class; its keywords take what it was made from
                if not plain(found.get(action.dest)):
                    action.type = json.loads
            found = vars(parser.parse_args(asked["flags"]))
    except SystemExit:
        lines = [line for line in said.getvalue().splitlines() if "error:" in line]
        error = lines[-1].partition("error:")[2].strip() if lines else "vLLM's parser refuses it"
    except ValueError as problem:
        error = str(problem).splitlines()[0]
    known = {field.name for part in (AsyncEngineArgs, cli_args.FrontendArgs) for field in dataclasses.fields(part)}
    unknown = [name for name in found if name not in known] if asked["for_ray"] else []
    if error is None and unknown:
        error = f"not an argument of vLLM's engine or front end: {', '.join(unknown)}"
    print(json.dumps({"error": error, "arguments": {} if error else found}))


def plain(value) -> bool:
    """Whether JSON holds the value."""
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


if __name__ == "__main__":
    main()
