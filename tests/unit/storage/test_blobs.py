from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from spot_ray.errors import DataError
from spot_ray.storage.blobs import (
    Beam,
    decode_column,
    decode_column_of_version_1,
    decode_xyz,
    decode_xyz_of_version_1,
    encode_column,
    encode_xyz,
)

FLOAT_DTYPES = ("float16", "float32", "float64")
DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", *FLOAT_DTYPES)


def blob(data: bytes) -> pa.Buffer:
    return pa.py_buffer(data)


def through_xyz(
    xyz: npt.NDArray[np.float32], beam: Beam | None = None, *, lossless: bool = False
) -> tuple[npt.NDArray[np.float32], bytes]:
    scale, data = encode_xyz(xyz, beam, lossless=lossless)
    assert scale in (0.0, 1 / 256)
    return decode_xyz(blob(data), scale, len(xyz), "s/f"), data


def through_column(values: npt.NDArray[Any], *, lossless: bool = False) -> tuple[npt.NDArray[Any], bytes]:
    data = encode_column(values, lossless=lossless)
    return decode_column(blob(data), values.dtype, len(values), "s/f", "intensity"), data


def assert_same_bits(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


def assert_within_half_a_step(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> None:
    assert np.abs(found.astype(np.float64) - wanted.astype(np.float64)).max() <= 1 / 512


@pytest.mark.parametrize("reach_m", [0.0, 0.6, 163.8, 219.0, 1000.0, 30_000.0, 65_000.0])
def test_coordinates_are_off_by_half_a_step_at_any_reach(reach_m: float) -> None:
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 0, 1)], np.float32) * reach_m
    inside = np.random.default_rng(0).uniform(-1, 1, (20_000, 3)) * [reach_m, reach_m, 5]
    xyz = np.concatenate([corners, inside]).astype(np.float32)
    assert_within_half_a_step(through_xyz(xyz)[0], xyz)


def test_steps_are_exact_multiples() -> None:
    xyz = (np.arange(-60_000, 60_000).reshape(-1, 3) / 256).astype(np.float32)
    assert_same_bits(through_xyz(xyz)[0], xyz)


def test_coordinates_beyond_whole_float32_stay_float32() -> None:
    xyz = np.array([[1e8, -2e7, 0.123456], [90_000, 1, -0.0]], np.float32)
    assert_same_bits(through_xyz(xyz)[0], xyz)


@pytest.mark.parametrize("count", [1, 2, 16_384, 16_385])
def test_lossless_coordinates_keep_every_bit_and_the_order(count: int) -> None:
    xyz = np.random.default_rng(1).normal(0, 50, (count, 3)).astype(np.float32)
    xyz[0] = [-0.0, 1e-42, 3e38]
    beams = np.arange(count, dtype=np.uint16)[::-1].copy()
    assert_same_bits(through_xyz(xyz, lambda part: beams[part], lossless=True)[0], xyz)


def test_the_width_follows_the_differences_and_not_the_reach() -> None:
    # A wall 219 m away is 56 064 steps off, yet its points are 3 steps apart: the first point alone needs 3 bytes.
    near, far = (np.stack([np.full(1000, x), np.arange(1000) / 100, np.zeros(1000)], 1) for x in (1.0, 219.0))
    compressed = [pa.compress(through_xyz(xyz.astype(np.float32))[1], "zstd").size for xyz in (near, far)]
    assert through_xyz(near.astype(np.float32))[1][0] == 2
    assert through_xyz(far.astype(np.float32))[1][0] == 3
    assert compressed[1] <= compressed[0] + 20


@pytest.mark.parametrize("num_beams", [8, 400])
def test_beams_that_take_turns_are_told_apart_and_the_order_is_kept(num_beams: int) -> None:
    # Every beam sees a smooth wall of its own, metres from the next beam's.
    columns = 8000 // num_beams
    beam = np.tile(np.arange(num_beams, dtype=np.uint16), columns)
    column = np.repeat(np.arange(columns), num_beams)
    xyz = np.stack([5.0 + 3 * beam, column * 0.01, (beam * 7 % 11) * 0.4], axis=1).astype(np.float32)
    xyz += np.random.default_rng(6).normal(0, 0.02, xyz.shape).astype(np.float32)
    with_lanes, data = through_xyz(xyz, lambda part: beam[part])
    without, plain = through_xyz(xyz)
    assert_within_half_a_step(with_lanes, xyz)
    assert_same_bits(with_lanes, without)
    assert data[1] == (1 if num_beams < 256 else 2)
    assert plain[1] == 0
    assert pa.compress(data, "zstd").size < 0.85 * pa.compress(plain, "zstd").size


def test_beams_that_do_not_pay_are_left_out() -> None:
    xyz = np.stack([np.arange(4000) * 0.01, np.zeros(4000), np.zeros(4000)], axis=1).astype(np.float32)
    beams = np.random.default_rng(2).integers(0, 64, 4000).astype(np.uint16)
    assert through_xyz(xyz, lambda part: beams[part])[1] == through_xyz(xyz)[1]


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("change", [b"", b"\0", b"\0\0\0"])
def test_coordinates_of_a_wrong_length_are_told(change: bytes, lossless: bool) -> None:
    scale, data = encode_xyz(np.ones((5, 3), np.float32), None, lossless=lossless)
    data = data + change if change else data[:-1]
    with pytest.raises(DataError, match=rf"xyz has {len(data)} bytes for 5 points") as caught:
        decode_xyz(blob(data), scale, 5, "s/f")
    assert caught.value.remedy
    with pytest.raises(DataError, match="xyz has 2 bytes"):
        decode_xyz(blob(b"ab"), scale, 5, "s/f")


def numbers_of_planes(planes: bytes, width: int, count: int) -> list[int]:
    """Return `count` unsigned numbers of byte planes, one by one, as the format is told."""
    return [int.from_bytes(bytes(planes[byte * count + i] for byte in range(width)), "little") for i in range(count)]


def points_one_by_one(data: bytes, scale: float, count: int) -> npt.NDArray[np.float32]:
    """Return the coordinates of a blob with lanes, point by point in Python's own numbers."""
    width, lane_width, body = data[0], data[1], data[4:]
    lanes = numbers_of_planes(body, lane_width, count) if lane_width else [0] * count
    # Planes of x, y and z lie in turns: the k-th byte of all x, of all y, of all z.
    zigzag = numbers_of_planes(body[lane_width * count :], width, 3 * count)
    along = sorted(range(count), key=lambda i: lanes[i])
    xyz = np.empty((count, 3), np.float32)
    for axis in range(3):
        step = 0
        for place, i in enumerate(along):
            coded = zigzag[axis * count + place]
            step += coded // 2 if coded % 2 == 0 else -(coded + 1) // 2
            wrapped = (step + 2**31) % 2**32 - 2**31
            xyz[i, axis] = np.float32(wrapped) * np.float32(scale)
    return xyz


@pytest.mark.parametrize("count", [1, 2, 1023, 1024, 2500])
@pytest.mark.parametrize("lane_width", [0, 1, 2])
@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_coordinates_are_those_of_the_format_bit_for_bit(width: int, lane_width: int, count: int) -> None:
    rng = np.random.default_rng([width, lane_width, count])
    body = rng.integers(0, 256, (3 * width + lane_width) * count, dtype=np.uint8)
    data = bytes([width, lane_width, 0, 0]) + body.tobytes()
    # Any bytes, and so sums beyond 32 bits too: damaged frames are the same on every machine.
    assert_same_bits(decode_xyz(blob(data), 1 / 256, count, "s/f"), points_one_by_one(data, 1 / 256, count))


@pytest.mark.parametrize("count", [1, 1024, 2500])
def test_decoded_arrays_are_our_own_and_in_order(count: int) -> None:
    xyz = np.random.default_rng(count).normal(0, 50, (count, 3)).astype(np.float32)
    arrays = [through_xyz(xyz)[0], through_xyz(xyz, lossless=True)[0]]
    arrays += [through_column(np.arange(count, dtype=dtype))[0] for dtype in ("uint8", "int32", "float32")]
    for array in arrays:
        assert array.flags.writeable
        assert array.flags.c_contiguous


@pytest.mark.parametrize("unit", [1, 100, 255])
@pytest.mark.parametrize("width", [1, 2])
def test_whole_numbers_become_floats_bit_for_bit(width: int, unit: int) -> None:
    count = 1500
    planes = np.random.default_rng(width).integers(0, 256, width * count, dtype=np.uint8).tobytes()
    data = b"u" + bytes([width]) + unit.to_bytes(2, "little") + planes
    wanted = [np.float32(number) / np.float32(unit) for number in numbers_of_planes(planes, width, count)]
    found = decode_column(blob(data), np.float32, count, "s/f", "intensity")
    assert_same_bits(found, np.array(wanted, np.float32))


@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4), ("float64", 8)])
def test_the_highest_bytes_of_floats_come_back_bit_for_bit(dtype: str, size: int) -> None:
    count = 1500
    for width in range(1, size + 1):
        planes = np.random.default_rng(width).integers(0, 256, width * count, dtype=np.uint8).tobytes()
        data = b"f" + bytes([width]) + (1).to_bytes(2, "little") + planes
        bits = [number << 8 * (size - width) for number in numbers_of_planes(planes, width, count)]
        found = decode_column(blob(data), dtype, count, "s/f", "intensity")
        assert_same_bits(found, np.array(bits, f"u{size}").view(dtype))


def test_writing_needs_no_compiler() -> None:
    write = """
import sys
import numpy as np
import spot_ray, spot_ray.cli, spot_ray.storage.dataset
from spot_ray.storage.blobs import encode_column, encode_xyz

ring = np.arange(4000, dtype=np.uint16) % 8
encode_xyz(np.ones((4000, 3), np.float32), lambda part: ring[part], lossless=False)
encode_column(np.linspace(0, 1, 100, dtype=np.float32), lossless=False)
assert "numba" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", write], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lossless", [False, True])
def test_columns_of_every_dtype_come_back(dtype: str, lossless: bool) -> None:
    rng = np.random.default_rng(3)
    if dtype == "bool":
        values = rng.random(1000) < 0.5
    elif dtype in FLOAT_DTYPES:
        values = rng.integers(-128, 129, 1000).astype(dtype) / 64  # 8 significant bits
    else:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, 1000, dtype=dtype, endpoint=True)
        values[:2] = limits.min, limits.max
    assert_same_bits(through_column(values, lossless=lossless)[0], values)
    assert_same_bits(through_column(values[:1], lossless=lossless)[0], values[:1])


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_lossless_floats_keep_every_bit(dtype: str) -> None:
    values = np.random.default_rng(4).integers(0, 256, 8 * 999, dtype=np.uint8).view(dtype)
    assert_same_bits(through_column(values, lossless=True)[0], values)
    for zeros in ([0.0, -0.0, 1.0], [0.01, -0.0, 0.07]):
        assert_same_bits(through_column(np.array(zeros, dtype), lossless=True)[0], np.array(zeros, dtype))


@pytest.mark.parametrize(
    ("values", "width"),
    [
        (np.arange(256), 1),  # nuScenes
        (np.arange(100) / 100, 1),  # KITTI
        (np.arange(256) / 255, 1),
        (np.array([0.0, 0.11, 0.75, 9.9, 10.17, 132.0, 196.0]), 2),  # ONCE
        (np.array([0.0, 65535.0]), 2),
        (np.array([139264.0, 49664.0, 0.07421875, 1.4296875]), 2),  # Waymo: 8 significant bits
    ],
)
@pytest.mark.parametrize("lossless", [False, True])
def test_intensities_of_the_known_datasets_are_exact(values: npt.NDArray[Any], width: int, lossless: bool) -> None:
    intensity = values.astype(np.float32)
    found, data = through_column(intensity, lossless=lossless)
    assert_same_bits(found, intensity)
    assert len(data) == 4 + width * len(values)


def test_other_intensities_are_rounded_to_8_significant_bits() -> None:
    rng = np.random.default_rng(5)
    values = (rng.choice([-1, 1], 10_000) * np.exp(rng.uniform(np.log(1e-30), np.log(1e30), 10_000))).astype(np.float32)
    found, data = through_column(values)
    assert (np.abs(found.astype(np.float64) - values) <= 2.0**-8 * np.abs(values.astype(np.float64))).all()
    assert len(data) == 4 + 2 * len(values)
    # Halfway between 1 and 1 + 1/128, and between that and 1 + 2/128: to even.
    halfway = np.array([1 + 1 / 256, 1 + 3 / 256], np.float32)
    assert through_column(halfway)[0].tolist() == [1.0, 1 + 2 / 128]


def test_nan_infinite_and_very_large_values_stay() -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.3, np.finfo(np.float32).max], np.float32)
    odd = np.array([0xFFFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # NaN that rounding could turn into a number
    found, _ = through_column(np.concatenate([values, odd]))
    np.testing.assert_array_equal(found[:3], values[:3])
    assert found[3] == pytest.approx(0.3, rel=2**-8)
    assert found[4] == values[4]
    assert np.isnan(found[5:]).all()


def test_other_byte_orders_come_back_as_the_same_numbers() -> None:
    values = np.array([0.1, 0.2, 1e9], ">f4")
    found = decode_column(blob(encode_column(values, lossless=True)), ">f4", 3, "s/f", "extra.x")
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "int32"])
@pytest.mark.parametrize("data", [b"", b"f", b"f\x02\x01\x00", b"u\x02\x01\x00abcde", b"u\x01\x00\x00abc"])
def test_columns_of_a_wrong_length_are_told(data: bytes, dtype: str) -> None:
    with pytest.raises(DataError, match=rf"ring has {len(data)} bytes for 3 points"):
        decode_column(blob(data), dtype, 3, "s/f", "ring")


@pytest.mark.parametrize(
    ("data", "dtype"),
    [(b"f\x01\x01\0abc", "uint16"), (b"i\x01\x01\0abc", "float32"), (b"u\x03\x01\0abcdefghi", "uint32")],
)
def test_columns_of_a_wrong_kind_are_told(data: bytes, dtype: str) -> None:
    with pytest.raises(DataError, match=f"expected: {dtype}"):
        decode_column(blob(data), dtype, 3, "s/f", "ring")


def test_version_1_is_read() -> None:
    steps = np.array([[-32768, 0], [1, 2], [3, 32767]])
    for dtype in ("<i2", "<i4"):
        found = decode_xyz_of_version_1(blob(steps.astype(dtype).tobytes()), 0.005, 2, "s/f")
        np.testing.assert_allclose(found, steps.T * 0.005, rtol=1e-6)
    exact = np.array([[0.1, -0.0], [1, 2], [3, 4]], "<f4")
    assert_same_bits(decode_xyz_of_version_1(blob(exact.tobytes()), 0.0, 2, "s/f"), np.ascontiguousarray(exact.T))
    assert decode_column_of_version_1(blob(b"\x00\xff"), np.float32, 2, "s/f", "intensity").tolist() == [0.0, 255.0]
    half = np.array([0.5, 3.25], "<f2").tobytes()
    assert decode_column_of_version_1(blob(half), np.float32, 2, "s/f", "intensity").tolist() == [0.5, 3.25]
    assert decode_column_of_version_1(blob(b"\xff\xff\x07\x00"), np.int32, 2, "s/f", "instance_id").tolist() == [-1, 7]
    for decode in (
        lambda data: decode_xyz_of_version_1(blob(data), 0.005, 2, "s/f"),
        lambda data: decode_column_of_version_1(blob(data), np.float32, 2, "s/f", "xyz"),
    ):
        with pytest.raises(DataError, match="xyz has 7 bytes for 2 points"):
            decode(b"1234567")
