"""YAML as JSON: safe types only, no key twice, no dates, and every fault with file and line."""

import math
import re
import sys
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError

MAX_BYTES = 4_000_000
# Numbers as YAML 1.2 has them: PyYAML's own read 1:30 as 90, 010 as 8 and 1_000 as 1000.
_FLOAT = re.compile(r"^[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$")
_INT = re.compile(r"^[-+]?(\d+|0x[0-9a-fA-F]+)$")


def read_yaml(path: Path) -> Any:
    """The document of a YAML file. Raises UserError with file and line."""
    if not path.is_file():
        raise UserError(
            "no such file" if not path.exists() else "is a folder, a YAML file is needed here", where=str(path)
        )
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"larger than {MAX_BYTES} bytes", where=str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=str(path)) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, where: str) -> Any:
    """The document of a YAML text. Raises UserError with `where` and the line."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())  # noqa: S506 a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        raise UserError(f"not valid YAML: {error.problem or error.context}", where=place) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(
            f"not valid YAML: {str(error).splitlines()[0] if str(error) else 'nested too deeply'}", where=where
        ) from None


def place_of(path: Path, key: str, *, under: str = "") -> str:
    """`FILE:LINE` of a key that begins a line of a YAML file, dashes for underscores or not; `FILE: KEY` where none does.
    under: a key of the file's own level, where it has one: the search begins below it."""
    pattern = re.compile(rf"\s*['\"]?{re.escape(key).replace('_', '[-_]')}['\"]?\s*:")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    start = next((n for n, line in enumerate(lines, 1) if under and line.startswith(f"{under}:")), 0)
    found = (n for n, line in enumerate(lines, 1) if n > start and pattern.match(line))
    return next((f"{path}:{number}" for number in found), f"{path}: {key}")


def _loader() -> Any:
    import yaml

    class Strict(yaml.SafeLoader):
        """SafeLoader without aliases (they can blow a file up), tags, dates and repeated keys."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            event: Any = self.peek_event()  # type: ignore[no-untyped-call]
            mark = event.start_mark
            if isinstance(event, yaml.events.AliasEvent):
                raise yaml.composer.ComposerError(None, None, "aliases (*name) are not read", mark)
            if getattr(event, "tag", None) is not None:
                raise yaml.composer.ComposerError(
                    None, None, f"tags ({event.tag}) are not read: write the value itself", mark
                )
            return super().compose_node(parent, index)

        def construct_yaml_float(self, node: Any) -> float:
            number = super().construct_yaml_float(node)
            if math.isinf(number):
                raise yaml.constructor.ConstructorError(
                    None, None, f"{node.value} is beyond the range of a number", node.start_mark
                )
            return number

        def construct_yaml_int(self, node: Any) -> int:
            number = int(node.value, 16 if "x" in node.value else 10)
            if abs(number) > sys.float_info.max:
                raise yaml.constructor.ConstructorError(
                    None, None, "a whole number beyond the range of a number", node.start_mark
                )
            return number

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} is not text", key_node.start_mark
                    )
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice", key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    Strict.yaml_implicit_resolvers = _without(
        yaml.SafeLoader.yaml_implicit_resolvers, "timestamp", "float", "int", "merge"
    )
    for kind, pattern, number in (
        ("float", _FLOAT, Strict.construct_yaml_float),
        ("int", _INT, Strict.construct_yaml_int),
    ):
        Strict.add_constructor(f"tag:yaml.org,2002:{kind}", number)
        Strict.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", pattern, list("-+.0123456789"))
    return Strict


def _without(resolvers: dict[str, Any], *kinds: str) -> dict[str, Any]:
    """PyYAML's table of what an untagged word may be, by first letter, without some kinds."""
    return {
        first: [(tag, pattern) for tag, pattern in pairs if tag.rpartition(":")[2] not in kinds]
        for first, pairs in resolvers.items()
    }
