"""The body of a transcription's request, in each of the ways that clients send audio."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from jarvis_core.codec.clip import RATE_HZ
from jarvis_core.codec.containers import CHANNELS_MAX, CLAIMS
from jarvis_core.codec.headerless import NOTHING_TOLD, Encoding, Headerless
from jarvis_core.codec.messages import DecodeUpload
from jarvis_core.codec.request import LANGUAGE_LIMIT, SAMPLE_RATE_MAX_HZ, SAMPLE_RATE_MIN_HZ, TranscribeRequest
from jarvis_core.errors import InvalidJson, InvalidRequest, TooLarge, UnsupportedMediaType

FORMATS: dict[str, Encoding] = {"f32": "f32", "pcm16": "pcm16"}

BYTES_TYPES = {
    "",
    "application/octet-stream",
    "binary/octet-stream",
    "application/x-octet-stream",
    "application/binary",
}
OTHER_TYPES = BYTES_TYPES | {
    "video/webm", "video/mp4", "video/ogg", "video/quicktime", "video/3gpp", "video/3gpp2", "video/x-matroska",
    "video/x-ms-asf", "application/ogg", "application/mp4", "application/x-matroska", "application/vnd.ms-asf",
}  # fmt: skip
"""Media types, besides those of audio, of a body that is the audio itself."""

SAMPLE_TYPES: dict[str, Encoding] = {
    "audio/l8": "u8", "audio/l16": "pcm16be", "audio/l24": "pcm24be",
    "audio/pcma": "alaw", "audio/x-alaw": "alaw", "audio/x-alaw-basic": "alaw",
    "audio/pcmu": "mulaw", "audio/x-mulaw": "mulaw", "audio/basic": "mulaw",
    "audio/pcm": "pcm", "audio/x-pcm": "pcm", "audio/x-float32": "f32",
}  # fmt: skip
"""Media types of samples without a header (RFC 3551, RFC 3190, RFC 2046; the last ones are what is spoken here)."""
TELEPHONE_HZ = 8_000
"""Rate of A-law and µ-law where none is told."""
LITTLE_ENDIAN: dict[Encoding, Encoding] = {"pcm16be": "pcm16", "pcm24be": "pcm24"}
"""With the parameter ``endianness``, which some clients send."""
DATA_HEAD_CHARS = 200
"""Of a ``data:`` URL, in front of what it holds."""

PARTS_LIMIT = 20
FIELD_LIMIT_BYTES = 1_000
MORE_LIMIT_BYTES = 4_000
"""Of a field that is told and not read here, such as a prompt."""
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
    told: Headerless = NOTHING_TOLD
    """What headerless samples are."""
    language: str | None = None
    fields: dict[str, str] = {}  # noqa: RUF012 - nobody changes it
    """What else a form said that was asked for."""


def read_upload(parts: Sequence[bytes], request: DecodeUpload) -> Upload:
    """
    Return the audio in the body that *parts* make, and what is said of it.

    Raises ``InvalidJson``, ``InvalidRequest``, ``TooLarge`` and ``UnsupportedMediaType``.
    """
    raw_type, options = parse_options_header(request.content_type)
    media_type = raw_type.decode("latin-1")
    default_hz = _check_rate(request.sample_rate_hz, "query.sample_rate")
    if media_type == "application/json" or media_type.endswith("+json"):
        upload = _read_json(b"".join(parts), request.limit_bytes, default_hz)
    elif media_type == "multipart/form-data":
        upload = _read_form(parts, options.get(b"boundary", b""), default_hz, request.fields)
    elif media_type.startswith("audio/") or media_type in OTHER_TYPES:
        upload = _with_type(Upload(b"".join(parts), "body"), request.content_type, "content-type", default_hz)
        upload = _with_format(upload, request.format)
    else:
        raise UnsupportedMediaType(f"The body has to be audio, multipart/form-data or JSON, not {media_type[:100]}.")
    if upload.audio[:5].lower() == b"data:" and b";base64," in upload.audio[:DATA_HEAD_CHARS].lower():
        # A page that sends what it has as a URL, in place of the audio itself.
        content_type, text = _split_data_url(upload.audio.decode("latin-1"), upload.path)
        upload = upload._replace(audio=_decode_base64(text, upload.path))
        upload = _with_type(upload, content_type, upload.path, upload.told.rate_hz)
    if len(upload.audio) > request.limit_bytes:
        raise _too_large(request.limit_bytes)
    return upload


def _read_json(body: bytes, limit_bytes: int, default_hz: int | None) -> Upload:
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
    content_type, text = _split_data_url(fields.audio_data, "$.audio_data")
    upload = Upload(_decode_base64(text, "$.audio_data"), "$.audio_data", language=fields.language)
    upload = _with_type(upload, content_type, "$.audio_data", fields.sample_rate or default_hz)
    return _with_format(upload, fields.format)


_decoder = msgspec.json.Decoder(TranscribeRequest)


def _split_data_url(text: str, path: str) -> tuple[str, str]:
    """Return the media type in front of what a ``data:`` URL holds (RFC 2397), and that; of other text all, and no type."""
    head, comma, rest = text[:DATA_HEAD_CHARS].partition(",")
    if not comma or head.lstrip()[:5].lower() != "data:":
        return "", text
    content_type, _, encoding = head.lstrip()[5:].rpartition(";")
    if encoding.strip().lower() != "base64":
        raise InvalidRequest.field(path, "is a data URL that is not in base64")
    return content_type, rest + text[DATA_HEAD_CHARS:]


def _decode_base64(text: str, path: str) -> bytes:
    """Return what *text* encodes in the standard alphabet, with or without padding and white space."""
    try:
        plain = text.encode("ascii").translate(None, WHITE_SPACE)
        if plain[-1:] == b"=" and len(plain) % 4:
            raise InvalidRequest.field(path, "is not base64: its padding is wrong")
        return binascii.a2b_base64(plain + b"=" * (-len(plain) % 4), strict_mode=True)
    except ValueError as exc:
        raise InvalidRequest.field(path, "is not base64 in the standard alphabet") from exc


def _read_form(parts: Sequence[bytes], boundary: bytes, default_hz: int | None, more: Sequence[str]) -> Upload:
    if not boundary:
        raise InvalidRequest.field("content-type", "names no boundary")
    form = _Form(boundary, more)
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
    others = {name: form.fields[name] for name in more if name in form.fields}
    upload = Upload(bytes(form.file), "file", language=language, fields=others)
    upload = _with_type(upload, form.file_type, "file", rate_hz)
    return _with_format(upload, form.fields.get("format"))


class _Form:
    """A ``multipart/form-data`` body as it is parsed: its file, and the text fields that mean something here."""

    KNOWN = ("language", "format", "sample_rate")

    def __init__(self, boundary: bytes, more: Sequence[str] = ()) -> None:
        self._known = (*self.KNOWN, *more)
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
            self.file_type = self._headers.get(b"content-type", b"").decode("latin-1")

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self.file += memoryview(data)[start:end]
        elif self._name in self._known:
            limit_bytes = FIELD_LIMIT_BYTES if self._name in self.KNOWN else MORE_LIMIT_BYTES
            if len(self._value) + end - start > limit_bytes:
                raise InvalidRequest.field(self._name, f"must be at most {limit_bytes} bytes long")
            self._value += data[start:end]

    def _end_part(self) -> None:
        if self._name in self._known:
            try:
                self.fields[self._name] = self._value.decode().strip()
            except UnicodeDecodeError as exc:
                raise InvalidRequest.field(self._name, "is not UTF-8") from exc

    def _end(self) -> None:
        self.ended = True


def _claim(media_type: str) -> str:
    container = CLAIMS.get(media_type.rpartition("/")[2])
    return container.name if container else ""


def _with_type(upload: Upload, content_type: str, path: str, rate_hz: int | None) -> Upload:
    """
    Note what *content_type* says of the audio, and that of its samples there are *rate_hz*, where it does not say so.

    Raises ``InvalidRequest`` at *path* where its parameters make no sense, ``UnsupportedMediaType`` of samples that
    cannot be read.
    """
    raw_type, options = parse_options_header(content_type)
    media_type = raw_type.decode("latin-1")
    if media_type == "audio/l20":
        raise UnsupportedMediaType("Samples of 20 bits (audio/L20) are not understood; audio/L8, L16 and L24 are.")
    encoding = SAMPLE_TYPES.get(media_type)
    if encoding is None:
        return upload._replace(claim=_claim(media_type), told=Headerless(rate_hz=rate_hz or RATE_HZ))
    if options.get(b"endianness", b"").lower().startswith(b"little"):
        encoding = LITTLE_ENDIAN.get(encoding, encoding)
    if b"rate" in options:
        rate_hz = _read_rate(options[b"rate"], f"{path}.rate")
    default_hz = TELEPHONE_HZ if encoding in ("alaw", "mulaw") else RATE_HZ
    channels = _read_channels(options.get(b"channels", b"1"), f"{path}.channels")
    return upload._replace(told=Headerless(encoding, rate_hz or default_hz, channels))


def _with_format(upload: Upload, word: str | None) -> Upload:
    """Note what *word* says of headerless samples, or that they are none; of a file it does no harm."""
    if not word:
        return upload
    name = word.lower()
    if name in FORMATS:
        return upload._replace(told=upload.told._replace(encoding=FORMATS[name]), claim="")
    return upload._replace(claim=_claim(name) or word[:CLAIM_LIMIT])


def _check_rate(rate_hz: int | None, path: str) -> int | None:
    if rate_hz is not None and not SAMPLE_RATE_MIN_HZ <= rate_hz <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(path, f"must be from {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ}")
    return rate_hz


def _read_rate(text: bytes, path: str) -> int:
    if not text.isdigit() or len(text) > 6 or not SAMPLE_RATE_MIN_HZ <= int(text) <= SAMPLE_RATE_MAX_HZ:
        raise InvalidRequest.field(path, f"must be a whole number from {SAMPLE_RATE_MIN_HZ} to {SAMPLE_RATE_MAX_HZ}")
    return int(text)


def _read_channels(text: bytes, path: str) -> int:
    if not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= CHANNELS_MAX:
        raise InvalidRequest.field(path, f"must be a whole number from 1 to {CHANNELS_MAX}")
    return int(text)


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The audio is over {limit_bytes} bytes.", details={"limit_bytes": limit_bytes})
