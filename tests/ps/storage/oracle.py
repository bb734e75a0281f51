"""What a table must do, written plainly in numpy: one row at a time, float32, from the formulas in ps/spec.py."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import xxhash

from ps.spec import FTRL, SGD, AdaGrad, Adam, Constant, Normal, RowWiseAdaGrad, SegmentSpec, TableSpec, Uniform, Zeros

f32 = np.float32
MASK = (1 << 64) - 1


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def draw(start: int, n: int) -> int:
    return mix64((start + (n + 1) * 0x9E3779B97F4A7C15) & MASK)


def stream(seed: int, table: str, segment: str, purpose: str) -> int:
    return xxhash.xxh64_intdigest(f"{seed}\0{table}\0{segment}\0{purpose}".encode())


def initial(spec: SegmentSpec, key: int, stream: int) -> np.ndarray:
    start = mix64(key ^ stream)
    match spec.initializer:
        case Zeros():
            return np.zeros(spec.dim, f32)
        case Constant(value=value):
            return np.full(spec.dim, value, f32)
        case Uniform(scale=scale):
            grid = [(draw(start, j) >> 40) - 2**23 for j in range(spec.dim)]
            return np.array(grid, f32) / f32(2**23) * f32(scale)
        case Normal(std=std):
            sums = []
            for j in range(spec.dim):
                words = [draw(start, 3 * j + k) for k in range(3)]
                sums.append(sum((w >> shift) & 0xFFFF for w in words for shift in (0, 16, 32, 48)))
            return (2 * np.array(sums) - 12 * 65535).astype(f32) / f32(2**17) * f32(std)
    raise AssertionError(spec.initializer)


def fitted(values: np.ndarray, scale: float) -> float:
    """The scale of int8 codes, from the one that they have (0: none yet) and the values that are to be stored."""
    greatest, least, most = float(np.abs(values).max()), 2.0**-126, 2.0**121
    if greatest == 0:
        return scale
    if scale == 0:
        scale = least
    while greatest > 127 * scale and scale < most:
        scale *= 2
    while greatest < 127 * scale / 4 and scale > least:
        scale /= 2
    return scale


def nearest(values: np.ndarray, codec: str, scale: float = 0) -> np.ndarray:
    """Values after a trip through the codec, to the nearest code, saturating. scale: of int8 codes, as `fitted`."""
    if codec == "fp32":
        return values
    if codec == "int8":
        codes = np.rint(values / scale if scale else values.astype(np.float64))
        return (np.clip(codes, -127, 127) * scale).astype(f32)
    if codec == "fp16":
        with np.errstate(over="ignore"):
            return np.clip(values.astype(np.float16), -65504, 65504).astype(f32)
    greatest = ml_dtypes.finfo(ml_dtypes.bfloat16).max
    return np.clip(values.astype(ml_dtypes.bfloat16), -greatest, greatest).astype(f32)


def stochastic(values: np.ndarray, codec: str, stream: int, key: int, step: int, scale: float = 0) -> np.ndarray:
    if codec == "fp32":
        return values
    start = mix64(((key ^ stream) + step * 0xD1B54A32D192ED03) & MASK)
    out = []
    for j, value in enumerate(values):
        random = (draw(start, j // 4) >> (16 * (j % 4))) & 0xFFFF
        magnitude = int(np.abs(value).view(np.uint32))
        if codec == "int8":
            code = (int(float(value) / scale * 2**16) + random) >> 16 if scale else 0
            out.append(f32(max(-127, min(127, code)) * scale))
            continue
        if codec == "bf16":
            code = min((magnitude + random) >> 16, 0x7F7F)
            rounded = np.uint32(code << 16).view(f32)
        elif np.abs(value) >= f32(2.0**-14):
            rounded = min(np.uint32((magnitude + (random >> 3)) & ~0x1FFF).view(f32), f32(65504))
        else:
            rounded = f32((int(np.abs(value) * f32(2.0**40)) + random) >> 16) * f32(2.0**-24)
        out.append(np.copysign(rounded, value))
    return np.array(out, f32)


class Segment:
    """Values and state of one segment of one row."""

    def __init__(self, spec: SegmentSpec, key: int, seed: int, table: str, name: str, rate: np.float32) -> None:
        self.spec, self.key = spec, key
        self.rounding = stream(seed, table, name, "rounding")
        self.state_rounding = stream(seed, table, name, "rounding of state")
        first = initial(spec, key, stream(seed, table, name, "initial"))
        self.scale = fitted(first, 0)  # of int8 codes
        self.w = nearest(first, spec.codec, self.scale)
        d, o = spec.dim, spec.optimizer
        state = {
            "sgd": lambda: np.zeros(0, f32),
            "adagrad": lambda: np.full(d, o.initial_accumulator, f32),
            "rowwise_adagrad": lambda: np.zeros(1, f32),
            "adam": lambda: np.zeros(3 * d if o.sweep else 2 * d + (2 if o.l2_per == "step" else 1), f32),
            "ftrl": lambda: np.concatenate([self._dual(self.w, rate), np.zeros(d, f32)]),
        }[o.name]()
        self.state = nearest(state, spec.state_codec)

    def _dual(self, w: np.ndarray, rate: np.float32, n: np.ndarray | float = 0) -> np.ndarray:
        o = self.spec.optimizer
        return -w * ((f32(o.beta) + np.sqrt(n, dtype=f32)) / rate + f32(o.l2)) - np.sign(w) * f32(o.l1)

    def overwrite(self, values: np.ndarray) -> None:
        """Values from outside, to the nearest; FTRL's z follows those that differ."""
        if isinstance(self.spec.optimizer, FTRL):
            d, rate = self.spec.dim, f32(self.spec.optimizer.learning_rate)
            z, n = self.state[:d], self.state[d:]
            z = np.where(self.w != values, self._dual(values, rate, n), z)
            self.state = nearest(np.concatenate([z, n]), self.spec.state_codec)
        self.scale = fitted(values, self.scale)
        self.w = nearest(values, self.spec.codec, self.scale)

    def push(self, g: np.ndarray, rate: np.float32, step: int) -> None:
        w, state = self.w.copy(), self.state.copy()
        d = self.spec.dim
        match self.spec.optimizer:
            case SGD(l2=l2):
                w = w - rate * (g + f32(l2) * w)
            case AdaGrad(eps=eps, l2=l2):
                g = g + f32(l2) * w
                state = state + g * g
                w = w - rate * g / (np.sqrt(state) + f32(eps))
            case RowWiseAdaGrad(eps=eps, l2=l2):
                g = g + f32(l2) * w
                lanes = np.zeros(8, f32)
                for j in range(d):
                    lanes[j % 8] += g[j] * g[j]
                a, b, c, e = lanes[0] + lanes[4], lanes[2] + lanes[6], lanes[1] + lanes[5], lanes[3] + lanes[7]
                state = state + ((a + b) + (c + e)) / f32(d)
                w = w - rate / (np.sqrt(state) + f32(eps)) * g
            case Adam(sweep=True):
                state[2 * d :] += g
            case Adam(l2_per=l2_per):
                elapsed = 1
                if l2_per == "step":
                    elapsed = max(1, step - int(state[2 * d + 1])) if state[2 * d] else 1
                    state[2 * d + 1] = step
                state[2 * d] += 1
                w, state[: 2 * d] = self._adam(w, state, g, rate, int(state[2 * d]), elapsed)
            case FTRL(beta=beta, l1=l1, l2=l2):
                z, n = state[:d], state[d:]
                moves = g != 0
                squares = n + g * g
                z = np.where(moves, z + g - (np.sqrt(squares) - np.sqrt(n)) / rate * w, z)
                with np.errstate(all="ignore"):
                    new = -(z - np.sign(z) * f32(l1)) / ((f32(beta) + np.sqrt(squares)) / rate + f32(l2))
                w = np.where(moves, np.where(np.abs(z) <= f32(l1), f32(0), new), w)
                state = np.concatenate([z, squares])
        self._store(w, state, step)

    def sweep(self, rate: np.float32, step: int) -> None:
        if getattr(self.spec.optimizer, "sweep", False):
            d = self.spec.dim
            w, moments = self._adam(self.w, self.state, self.state[2 * d :], rate, step)
            self._store(w, np.concatenate([moments, np.zeros(d, f32)]), step)

    def _adam(self, w, state, g, rate, t, elapsed=1):
        o, d = self.spec.optimizer, self.spec.dim
        g = g + f32(o.l2 * elapsed) * w
        m = state[:d] + f32(1 - o.beta1) * (g - state[:d])
        v = state[d : 2 * d] * f32(o.beta2) + f32(1 - o.beta2) * g * g
        size = f32(float(rate) / (1 - power(o.beta1, t)))
        w = w - size * m / (np.sqrt(v) / f32(np.sqrt(1 - power(o.beta2, t))) + f32(o.eps))
        return w, np.concatenate([m, v])

    def _store(self, w, state, step):
        assert w.dtype == state.dtype == f32
        self.scale = fitted(w, self.scale)
        self.w = stochastic(w, self.spec.codec, self.rounding, self.key, step, self.scale)
        self.state = stochastic(state, self.spec.state_codec, self.state_rounding, self.key, step)


def power(base: float, exponent: int) -> float:
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


class Oracle:
    """A table as a dict of rows."""

    def __init__(self, name: str, spec: TableSpec, seed: int) -> None:
        self.name, self.spec, self.seed = name, spec, seed
        self.rows: dict[int, list[Segment]] = {}

    def _row(self, key: int, rates: np.ndarray) -> list[Segment]:
        return [
            Segment(segment, key, self.seed, self.name, name, rate)
            for (name, segment), rate in zip(self.spec.segments.items(), rates)
        ]

    def pull(self, keys) -> np.ndarray:
        ones = np.ones(len(self.spec.segments), f32)
        rows = [self.rows.get(key) or self._row(key, ones) for key in map(int, keys)]
        empty = np.empty((0, self.spec.width), f32)
        return np.array([np.concatenate([s.w for s in row]) for row in rows], f32) if rows else empty

    def push(self, keys, gradients, step, rates) -> int:
        created = 0
        for key, gradient in zip(map(int, keys), gradients):
            if key not in self.rows:
                self.rows[key] = self._row(key, rates)
                created += 1
            start = 0
            for segment, rate in zip(self.rows[key], rates):
                segment.push(gradient[start : start + segment.spec.dim], rate, step)
                start += segment.spec.dim
        return created

    def sweep(self, step, rates) -> None:
        for row in self.rows.values():
            for segment, rate in zip(row, rates):
                segment.sweep(rate, step)

    def overwrite(self, keys, values, segment=None) -> None:
        """Values of rows that exist, of one segment or of all."""
        columns = self.spec.columns()
        chosen = [segment] if segment else list(columns)
        first = columns[chosen[0]].start
        for key, new in zip(map(int, keys), values):
            for name, part in zip(columns, self.rows[key]):
                if name in chosen:
                    part.overwrite(new[columns[name].start - first : columns[name].stop - first])

    def delete(self, keys) -> int:
        return sum(self.rows.pop(key, None) is not None for key in map(int, keys))
