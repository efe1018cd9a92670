"""Files of text in blocks of UTF-8 bytes: unpacked, decoded, and never binary."""

import bz2
import codecs
import gzip
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from plmjax import DataError, PlmjaxError
from plmjax.data.archives import ERRORS, UNPACK_RATIO, open_member, size_of
from plmjax.data.corpus import Tally, not_utf8, unreadable

BLOCK_BYTES = 1 << 20
GUESS_BYTES = 1 << 14
_UTF16 = ("utf_16_le", "utf_16_be")
_LEGACY = ("cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254")
_LEGACY += ("gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
_CONTROLS = re.compile(rb"[\0-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROLS_8_BIT = re.compile(rb"[\x80-\x9f]")
_BYTE_ORDER_MARKS = {
    "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # one begins as UTF-16's
    "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
_EXPORT = "Export its text to a .txt."
_FORMATS = (  # the hint is a sentence, or the ending that the name lacks
    (b"\x1f\x8b", "gzip-compressed", ".gz"),
    (b"BZh", "bzip2-compressed", ".bz2"),
    (b"\xfd7zXZ\0", "xz-compressed", ".xz"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", ".zst"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it."),
    (b"Rar!\x1a\x07", "a rar archive", "Unpack it."),
    (b"PK\x03\x04", "a docx, xlsx, odt, epub or zip", "Unpack it, or e" + _EXPORT[1:]),
    (b"PAR1", "parquet", "Set --config.data.source.kind=parquet."),
    (b"%PDF-", "a PDF", _EXPORT),
    (b"{\\rtf", "RTF", _EXPORT),
    (b"\x89PNG\r\n", "a PNG image", "Leave it out."),
    (b"\xff\xd8\xff", "a JPEG image", "Leave it out."),
)


class Decoding(NamedTuple):
    """The encoding of files, as codecs name it; errors at invalid bytes, or replace."""

    encoding: str = "utf-8"
    errors: str = "strict"

    @property
    def is_utf8(self) -> bool:
        """Whether no other encoding is set."""
        return self.encoding in ("utf-8", "utf-8-sig")

    @property
    def changes(self) -> dict[str, str]:
        """What a fingerprint has of it; that of UTF-8 is as before there was a key."""
        return {} if self.is_utf8 else {"encoding": self.encoding}


UTF8 = Decoding()


def raw_blocks(
    path: Path, decoding: Decoding = UTF8, tally: Tally | None = None
) -> Iterator[bytes]:
    """Yields the file as UTF-8, unpacked by its ending, then an empty block.

    Bytes that should be UTF-8 are not checked. Text in UTF-16 or UTF-32 is recognised
    by its byte order mark.

    Raises:
      PlmjaxError: it cannot be read, is binary, or is not in the encoding (code 3).
    """
    size, decode = 0, None
    try:
        with open_bytes(path) as stream:
            while raw := stream.read(BLOCK_BYTES):
                if size == 0:
                    decode = _decoder(path, raw, decoding, tally)
                size += len(raw)
                _check_ratio(path, size)
                block = raw if decode is None else decode(raw, size - len(raw))
                if block:
                    yield block
    except ERRORS as error:
        raise unreadable(path, error) from None
    if decode is not None and (block := decode(b"", size)):
        yield block
    yield b""


def _zstd(file: Path | IO[bytes]) -> IO[bytes]:
    import pyarrow  # 0.2 s

    packed = pyarrow.OSFile(str(file)) if isinstance(file, Path) else file
    return pyarrow.CompressedInputStream(packed, "zstd")


_UNPACK: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstd,
}


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file for reading bytes, unpacked if its ending names a compression.

    It may be in an archive.
    """
    member, unpack = open_member(path), _UNPACK.get(path.suffix.lower())
    if unpack is not None:
        return unpack(member or path)
    return member or open(path, "rb")


def ending(path: Path) -> str:
    """Returns the ending of a name in lower case, without dot and compression."""
    name = path.stem if path.suffix.lower() in _UNPACK else path.name
    return Path(name).suffix[1:].lower()


def _check_ratio(path: Path, size: int) -> None:
    packed = path.suffix.lower() in _UNPACK and max(size_of(path), 1 << 20)
    if packed and size > UNPACK_RATIO * packed:
        raise DataError(
            f"{path} unpacks to more than {UNPACK_RATIO} times its size.",
            hint="If that is right, unpack it by hand.",
        )


def _decoder(
    path: Path, begin: bytes, decoding: Decoding, tally: Tally | None
) -> Callable[[bytes, int], bytes] | None:
    """Returns a function (block, its offset) -> UTF-8; None: the file is UTF-8."""
    for magic, what, hint in _FORMATS:
        if begin.startswith(magic):
            if hint.startswith("."):
                hint = f"Unpack it, or rename it to {path.name}{hint}."
            raise DataError(f"{path} is {what}.", hint=hint)
    if begin[257:262] == b"ustar":
        raise DataError(f"{path} is a tar archive.", hint="Unpack it.")
    marks = (n for n, mark in _BYTE_ORDER_MARKS.items() if begin.startswith(mark))
    name = next(marks, None) if decoding.is_utf8 else decoding.encoding
    if name is None:
        _check_controls(path, begin)
        return None
    if not decoding.is_utf8:
        _check_not_utf8(path, begin, name)
    decoder = codecs.getincrementaldecoder(name)(decoding.errors)

    def decode(raw: bytes, offset: int) -> bytes:
        try:
            text = decoder.decode(raw, final=not raw)
        except UnicodeError as error:  # of UTF-16 without a mark it has no position
            start, reason = getattr(error, "start", 0), getattr(error, "reason", error)
            at = f"{path}: byte {offset + start:,} or just before it"
            hint = "Check --config.data.encoding, or set --config.data.errors=replace."
            raise DataError(f"{at} is not {name}: {reason}.", hint=hint) from None
        if tally is not None and decoding.errors == "replace":
            tally.replaced_characters += text.count("\ufffd")
        return text.encode(errors="replace")

    return decode


def _check_controls(path: Path, begin: bytes) -> None:
    """Raises PlmjaxError for bytes that are ASCII, but too many of them controls."""
    share = len(_CONTROLS.findall(begin)) / len(begin)
    if share < max(0.2, 10 / len(begin)):  # fewer are removed by clean()
        return
    name = _guess(begin, _UTF16)
    what = f"is UTF-16 without a byte order mark ({name})" if name else "is binary"
    raise DataError(
        f"{path} {what}: {share:.0%} of its first {len(begin):,} bytes are controls.",
        hint=f"Set --config.data.encoding={name}." if name else "Leave it out.",
    )


def _check_not_utf8(path: Path, begin: bytes, encoding: str) -> None:
    """Raises PlmjaxError if UTF-8 would be read in another encoding: é as Ã©."""
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(begin)
    if not text.isascii() and "\0" not in text and "\ufffd" not in text:
        raise DataError(
            f"{path} is UTF-8, not {encoding}.",
            hint="Leave out --config.data.encoding, or name only files in it.",
        )


def invalid_utf8(where: str, raw: bytes, start: int) -> PlmjaxError:
    """Returns the error for bytes that are not UTF-8 at `start`, with their encoding.

    `where` is a file and a position.
    """
    name = guess_encoding(raw, start)
    if name is None:
        text = raw[:GUESS_BYTES].decode(errors="replace")
        if text.count("\ufffd") <= 0.1 * len(text) or len(text) <= 100:
            return not_utf8(where)
        return DataError(
            f"{where} is not UTF-8, nor are many others: the file is binary, or text "
            "in another encoding.",
            hint="Leave it out, or set --config.data.encoding.",
        )
    text = raw[max(0, start - GUESS_BYTES) : start + GUESS_BYTES].decode(name, "ignore")
    word = re.search(r"\w*[^\W\x00-\x7f]\w*", text)
    example = f" ({word[0][:20]!r})" if word else ""
    option = f"--config.data.encoding={name}"
    return not_utf8(where, f"The file looks like {name}{example}: set {option}. ")


def guess_encoding(raw: bytes, start: int = 0) -> str | None:
    """Returns the likely encoding of bytes that are not UTF-8 at `start`, or None."""
    sample = raw[max(0, start - GUESS_BYTES // 2) :][:GUESS_BYTES]
    text = sample.decode(errors="replace")
    # Damaged UTF-8 has more letters that are right than bytes that are wrong.
    if len(re.findall("[^\x00-\x7f\ufffd]", text)) >= text.count("\ufffd"):
        return None
    # cp1252 is tried alone: others have the same letters at the same places.
    name = _guess(sample, _UTF16) or _guess(sample, ("cp1252",))
    if name == "cp1252" and not _CONTROLS_8_BIT.search(raw):
        return "latin-1"  # of which cp1252 is an extension, by letters for controls
    return name or _guess(sample, _LEGACY)


def _guess(raw: bytes, names: tuple[str, ...]) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(raw[:GUESS_BYTES], cp_isolation=[*names]).best()
    return None if best is None else best.encoding.replace("utf_16_", "utf-16-")
