"""JSON and YAML from strangers: strict, finite, and bounded before anything unfolds."""

import json
import math
from collections.abc import Iterable
from typing import Any

MAX_BYTES = 256 * 2**20  # of a description; annotations of large datasets have a limit of their own
MAX_DEPTH = 64
MAX_YAML_BYTES = 2**20
MAX_YAML_NODES = 100_000  # with every alias written out
INT64 = range(-(2**63), 2**63)


def parse_json(content: bytes | str) -> Any:
    """Reads JSON strictly.

    Refused are NaN, infinity and numbers that become it (1e999), integers beyond 64 bits, a key
    given twice, text that has no UTF-8, and more than `MAX_DEPTH` levels.

    Raises:
        ValueError: says what is wrong.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_int64,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError as error:
        raise ValueError(f"deeper than {MAX_DEPTH} levels") from error
    _check_depth(value)
    if "\\ud" in text.lower():  # half of a pair that stands for one character
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return value


def _int64(digits: str) -> int:
    value = int(digits) if len(digits) <= 20 else INT64.stop
    if value not in INT64:
        raise ValueError(f"{digits[:20]} is too large for an integer of 64 bits")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(value)}"[:200])
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [each for outer in level for each in _inside(outer) if type(each) in (dict, list)]
        if not level:
            return
    raise ValueError(f"deeper than {MAX_DEPTH} levels")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def parse_yaml(content: bytes) -> Any:
    """Reads YAML as plain data: what JSON has, and integers as keys.

    How many nodes there will be is counted before aliases unfold.

    Raises:
        ValueError: it is not valid YAML in UTF-8, too large, too deep, or holds another type.
    """
    import yaml

    if len(content) > MAX_YAML_BYTES:
        raise ValueError(f"larger than {MAX_YAML_BYTES} bytes")
    text = content.decode("utf-8-sig")
    try:
        _check_events(yaml.parse(text, Loader=yaml.SafeLoader))
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError, AttributeError) as error:
        raise ValueError(f"not valid YAML: {error}") from error
    _check_plain(value)
    return value


def _check_events(events: Iterable[Any]) -> None:
    import yaml

    weights: dict[str, int] = {}
    counts: list[int] = [0]
    anchors: list[str | None] = [None]  # of the collections that are open
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name in anchors or name not in weights:
                raise ValueError(f"the alias {name[:40]!r} stands for nothing, or for itself")
            counts[-1] += weights[name]
        elif isinstance(event, yaml.CollectionStartEvent):
            counts.append(1)
            anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            count, anchor = counts.pop(), anchors.pop()
            counts[-1] += count
            if anchor is not None:
                weights[anchor] = count
        elif isinstance(event, yaml.ScalarEvent):
            counts[-1] += 1
            if event.anchor is not None:
                weights[event.anchor] = 1
        if len(counts) > MAX_DEPTH or sum(counts) > MAX_YAML_NODES:
            raise ValueError(
                f"deeper than {MAX_DEPTH} levels, or more than {MAX_YAML_NODES} values"
            )


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            _check_plain(key)
            _check_plain(each)
    elif isinstance(value, list):
        for each in value:
            _check_plain(each)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} where a finite number was expected")
    elif isinstance(value, int):
        if value not in INT64:
            raise ValueError("a number too large for an integer of 64 bits")
    elif isinstance(value, str):
        value.encode()
    elif value is not None:
        raise ValueError(f"a {type(value).__name__}; put quotes around it if it is a text")
