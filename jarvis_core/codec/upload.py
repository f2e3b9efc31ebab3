"""The body of a transcription's request, in each of the ways that clients send audio."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jarvis_core.codec.clip import RATE_HZ, Encoding
from jarvis_core.codec.containers import CLAIMS
from jarvis_core.codec.messages import DecodeUpload
from jarvis_core.codec.request import LANGUAGE_LIMIT, SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ, TranscribeRequest
from jarvis_core.errors import InvalidJson, InvalidRequest, TooLarge, UnsupportedMediaType

FORMATS: dict[str, Encoding] = {"f32": "f32", "pcm16": "pcm16"}

OTHER_TYPES = {"", "video/webm", "video/mp4", "application/ogg", "application/octet-stream"}
"""Media types, besides those of audio, of a body that is the audio itself."""

PARTS_LIMIT = 20
FIELD_LIMIT_BYTES = 1_000
CLAIM_LIMIT = 20
"""Characters of a client's own word for a kind of file that an error repeats."""
WHITE_SPACE = b" \t\r\n\f\v"


class Upload(NamedTuple):
    """What a client sent."""

    audio: bytes
    path: str
    """Where the audio was, for errors."""
    claim: str = ""
    """The name of the kind of file that it is said to be; empty where nothing is said."""
    encoding: Encoding = "f32"
    """Of headerless samples."""
    headerless_hz: int = RATE_HZ
    language: str | None = None


def read_upload(parts: Sequence[bytes], request: DecodeUpload) -> Upload:
    """
    Return the audio in the body that *parts* make, and what is said of it.

    Raises ``InvalidJson``, ``InvalidRequest``, ``TooLarge`` and ``UnsupportedMediaType``.
    """
    raw_type, options = parse_options_header(request.content_type)
    media_type = raw_type.decode("latin-1")
    default_hz = _check_rate(request.sample_rate_hz, "query.sample_rate") or RATE_HZ
    if media_type == "application/json" or media_type.endswith("+json"):
        upload = _read_json(b"".join(parts), request.limit_bytes, default_hz)
    elif media_type == "multipart/form-data":
        upload = _read_form(parts, options.get(b"boundary", b""), default_hz)
    elif media_type.startswith("audio/") or media_type in OTHER_TYPES:
        upload = Upload(b"".join(parts), "body", _claim(media_type), headerless_hz=default_hz)
        if media_type == "audio/l16":
            # RFC 3551, section 4.5.11: big-endian, the rate is a parameter.
            rate_hz = _read_rate(options.get(b"rate", b"%d" % default_hz), "content-type.rate")
            upload = upload._replace(encoding="pcm16be", headerless_hz=rate_hz)
        else:
            upload = _with_format(upload, request.format)
    else:
        raise UnsupportedMediaType(f"The body has to be audio, multipart/form-data or JSON, not {media_type[:100]}.")
    if len(upload.audio) > request.limit_bytes:
        raise _too_large(request.limit_bytes)
    return upload


def _read_json(body: bytes, limit_bytes: int, default_hz: int) -> Upload:
    try:
        fields = _decoder.decode(body)
    except msgspec.ValidationError as exc:
        # "Expected `str`, got `int` - at `$.content`"
        rule, _, path = str(exc).partition(" - at `")
        raise InvalidRequest.field(path.rstrip("`") or "$", rule) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InvalidJson("The body is not JSON in UTF-8." if body else "The body is empty; JSON is needed.") from exc
    # A third more, and a line end after every few characters.
    if len(fields.audio_data) > limit_bytes * 2 + 8:
        raise _too_large(limit_bytes)
    audio = _decode_base64(fields.audio_data, "$.audio_data")
    upload = Upload(audio, "$.audio_data", headerless_hz=fields.sample_rate or default_hz, language=fields.language)
    return _with_format(upload, fields.format)


_decoder = msgspec.json.Decoder(TranscribeRequest)


def _decode_base64(text: str, path: str) -> bytes:
    """Return what *text* encodes in the standard alphabet, with or without padding and white space."""
    try:
        plain = text.encode("ascii").translate(None, WHITE_SPACE)
        if plain[-1:] == b"=" and len(plain) % 4:
            raise InvalidRequest.field(path, "is not base64: its padding is wrong")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as exc:
        raise InvalidRequest.field(path, "is not base64 in the standard alphabet") from exc


def _read_form(parts: Sequence[bytes], boundary: bytes, default_hz: int) -> Upload:
    if not boundary:
        raise InvalidRequest.field("content-type", "names no boundary")
    form = _Form(boundary)
    for part in parts:
        form.feed(part)
    if not form.ended:
        raise InvalidRequest.field("body", "ends before its last boundary")
    if not form.has_file:
        raise InvalidRequest.field("file", "is missing")
    language = form.fields.get("language") or None
    if language is not None and len(language) > LANGUAGE_LIMIT:
        raise InvalidRequest.field("language", f"must be at most {LANGUAGE_LIMIT} characters long")
    rate = form.fields.get("sample_rate")
    rate_hz = _read_rate(rate.encode(), "sample_rate") if rate else default_hz
    upload = Upload(bytes(form.file), "file", _claim(form.file_type), headerless_hz=rate_hz, language=language)
    return _with_format(upload, form.fields.get("format"))


class _Form:
    """A ``multipart/form-data`` body as it is parsed: its file, and the text fields that mean something here."""

    KNOWN = ("language", "format", "sample_rate")

    def __init__(self, boundary: bytes) -> None:
        self.file = bytearray()
        self.has_file = False
        self.file_type = ""
        self.fields: dict[str, str] = {}
        self.ended = False
        self._parts = 0
        self._name = ""
        self._value = bytearray()
        self._header = bytearray()
        self._header_value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._take,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as exc:
            raise InvalidRequest.field("content-type", "has a boundary that is too long") from exc

    def feed(self, data: bytes) -> None:
        """Parse the next bytes."""
        try:
            self._parser.write(data)
        except FormParserError as exc:
            raise InvalidRequest.field("body", "is not well-formed multipart/form-data") from exc

    def _begin_part(self) -> None:
        self._parts += 1
        if self._parts > PARTS_LIMIT:
            raise InvalidRequest.field("body", f"has more than {PARTS_LIMIT} parts")
        self._headers.clear()
        self._value.clear()

    def _end_header(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._header_value)
        self._header.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.has_file:
                raise InvalidRequest.field("file", "must be there only once")
            self.has_file = True
            self.file_type = parse_options_header(self._headers.get(b"content-type"))[0].decode("latin-1")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.file += memoryview(data)[start:end]
        elif self._name in self.KNOWN:
            if len(self._value) + end - start > FIELD_LIMIT_BYTES:
                raise InvalidRequest.field(self._name, f"must be at most {FIELD_LIMIT_BYTES} bytes long")
            self._value += data[start:end]

    def _end_part(self) -> None:
        if self._name in self.KNOWN:
            try:
                self.fields[self._name] = self._value.decode().strip()
            except UnicodeDecodeError as exc:
                raise InvalidRequest.field(self._name, "is not UTF-8") from exc

    def _end(self) -> None:
        self.ended = True


def _claim(media_type: str) -> str:
    container = CLAIMS.get(media_type.rpartition("/")[2])
    return container.name if container else ""


def _with_format(upload: Upload, word: str | None) -> Upload:
    """Note what *word* says of headerless samples, or that they are none; of a file it does no harm."""
    if not word:
        return upload
    name = word.lower()
    if name in FORMATS:
        return upload._replace(encoding=FORMATS[name], claim="")
    return upload._replace(claim=_claim(name) or word[:CLAIM_LIMIT])


def _check_rate(rate_hz: int | None, path: str) -> int | None:
    if rate_hz is not None and not SAMPLE_RATE_MIN_HZ <= rate_hz <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(path, f"must be from {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ}")
    return rate_hz


def _read_rate(text: bytes, path: str) -> int:
    if not text.isdigit() or len(text) > 6 or not SAMPLE_RATE_MIN_HZ <= int(text) <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(path, f"must be a whole number from {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ}")
    return int(text)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The audio is over {limit_bytes} bytes.", details={"limit_bytes": limit_bytes})
