"""What bad disks, half copies and bad tools make of a file: bytes and JSON, changed."""

import json
import random
import struct
from collections.abc import Callable

_VALUES = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1.5, 1e308),
    *(float("nan"), float("inf"), "", "a", "../../x", "/etc/passwd", "\0", "\ud800"),
    *("a" * 10_000, [], [[]], {}, {"a": 1}, [None], ["a", 1], [0] * 5000),
)


def bytes_changed(content: bytes, chance: random.Random) -> bytes:
    """Returns the content with one of the things done that disks and copies do."""
    size, found = len(content), bytearray(content)
    at = chance.randrange(size + 1)
    length = chance.choice((1, 1, 4, 64, 4096))
    match chance.randrange(7):
        case 0 if size:  # A bit.
            found[at % size] ^= 1 << chance.randrange(8)
        case 1:  # Cut off.
            del found[at:]
        case 2:  # A hole.
            del found[at : at + length]
        case 3:  # Zeros, as after a crash.
            found[at : at + length] = bytes(len(found[at : at + length]))
        case 4:  # Noise.
            found[at : at + length] = chance.randbytes(length)
        case 5:  # A piece of it once more.
            start = chance.randrange(size + 1)
            found[at:at] = found[start : start + length]
        case _:  # Digits, which are sizes and places.
            digits = [i for i, byte in enumerate(found) if 48 <= byte < 58]
            if digits:
                found[chance.choice(digits)] = 48 + chance.randrange(10)
    return bytes(found)


def json_changed(content: bytes, chance: random.Random) -> bytes:
    """Returns JSON with one value exchanged, left out, or there twice."""
    value = json.loads(content)
    places = list(_places(value))
    if not places or chance.random() < 0.03:  # The whole of it.
        return _dump(chance.choice(_VALUES))
    holder, key = chance.choice(places)
    match chance.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[chance.choice(("", "extra", "a" * 300, f"{key}2"))] = holder[key]
        case 2 if isinstance(holder, dict):  # Under another's name.
            other = chance.choice(list(holder))
            holder[other] = holder.pop(key)
        case 3 if isinstance(holder, dict):  # Twice: the last one wins, or nobody.
            return _dump(value).replace(
                _dump({key: holder[key]})[1:-1],
                _dump({key: holder[key]})[1:-1] + b", " + _dump({key: 0})[1:-1],
                1,
            )
        case 4:  # Deep enough for a parser that calls itself.
            holder[key] = "DEEP"
            return _dump(value).replace(b'"DEEP"', b"[" * 50_000 + b"]" * 50_000)
        case _:
            holder[key] = chance.choice(_VALUES)
    return _dump(value)


def lines_changed(content: bytes, chance: random.Random) -> bytes:
    """Returns JSON lines, one of them changed."""
    lines = content.splitlines()
    at = chance.randrange(len(lines))
    lines[at] = json_changed(lines[at], chance)
    return b"\n".join(lines) + b"\n"


def header_changed(content: bytes, chance: random.Random) -> bytes:
    """Returns a safetensors file whose header is changed as JSON, its length right."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json_changed(content[8 : 8 + size], chance)
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def either(*changes: Callable) -> Callable:
    """Returns a change that is one of several by chance."""
    return lambda content, chance: chance.choice(changes)(content, chance)


def _places(value):
    """Yields (holder, key) of everything inside of a JSON value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys)[:50]:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _dump(value) -> bytes:
    return json.dumps(value).encode()
