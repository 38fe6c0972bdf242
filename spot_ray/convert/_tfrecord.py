"""TFRecord files, read as a stream: one record in memory at a time, checked by its own checksums.

A record is its length (uint64), the masked CRC-32C of the length (uint32), the data, and the masked CRC-32C of the data
(uint32), all little-endian; see `tensorflow/core/lib/io/record_writer.h`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from spot_ray.convert.files import AGAIN
from spot_ray.errors import DataError
from spot_ray.storage import uri as uris

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")


@dataclass(frozen=True)
class Record:
    """One record as it lies in the file.

    Args:
        where: The file and the record, for messages.
        data: Its data, not yet checked.
        checksum: The checksum that the file gives of the data.
    """

    where: str
    data: bytes
    checksum: int

    def checked(self) -> bytes:
        """Return the data.

        Raises:
            DataError: If it does not fit its checksum.
        """
        found = masked_crc32c(self.data)
        if found != self.checksum:
            raise DataError(
                f"the record's {len(self.data)} bytes have the checksum {found:#010x}",
                where=self.where,
                expected=f"{self.checksum:#010x}, which is stored behind them",
                remedy=AGAIN,
            )
        return self.data


def read_records(uri: str) -> Iterator[Record]:
    """Yield the records of a file in order.

    The lengths are checked, since all that follows hangs on them; the data is not: see :meth:`Record.checked`.

    Args:
        uri: The file; uncompressed.

    Raises:
        DataError: If the file is missing or empty, ends within a record, or a length does not fit its checksum.
    """
    system, path = uris.filesystem(uri)
    with uris.refusals_told("read the file", uri), system.open_input_stream(path, compression=None) as stream:
        left = system.get_file_info(path).size
        if not left:
            raise DataError("the file is empty", where=uri, expected="a TFRecord file", remedy=AGAIN)
        number = 0
        while left:
            where = f"{uri}, record {number}"
            if left < HEADER.size:
                raise _cut(where, left, HEADER.size)
            header = stream.read(HEADER.size)
            length, checksum = HEADER.unpack(header)
            found = masked_crc32c(header[:8])
            if found != checksum:
                raise DataError(
                    f"the record's length reads {length}, which has the checksum {found:#010x}",
                    where=where,
                    expected=f"{checksum:#010x}, which is stored behind it",
                    remedy=f"{AGAIN}; it must be an uncompressed TFRecord file",
                )
            left -= HEADER.size
            if left < length + FOOTER.size:
                raise _cut(where, left, length + FOOTER.size)
            yield Record(where, stream.read(length), FOOTER.unpack(stream.read(FOOTER.size))[0])
            left -= length + FOOTER.size
            number += 1


def frame_record(data: bytes) -> bytes:
    """Return what a TFRecord file holds for one record."""
    length = struct.pack("<Q", len(data))
    return length + FOOTER.pack(masked_crc32c(length)) + data + FOOTER.pack(masked_crc32c(data))


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of the data, rotated and shifted as TFRecord files store it."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of the data."""
    values = np.frombuffer(data, dtype=np.uint8)
    num_words = len(values) // 8
    words = values[: 8 * num_words].view("<u8")
    return int(_crc32c(words, values[8 * num_words :], _TABLES))


def _make_tables() -> npt.NDArray[np.uint64]:
    """Return (8, 256): what a byte that 0 to 7 bytes follow adds to the checksum ("slicing by 8")."""
    reversed_polynomial = np.uint64(0x82F63B78)
    one, byte = np.uint64(1), np.uint64(0xFF)
    tables = np.zeros((8, 256), dtype=np.uint64)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = tables[0] >> one ^ reversed_polynomial * (tables[0] & one)
    for k in range(1, 8):
        tables[k] = tables[k - 1] >> np.uint64(8) ^ tables[0][tables[k - 1] & byte]
    return tables


_TABLES = _make_tables()


@nb.njit(cache=True)
def _crc32c(words: npt.NDArray[np.uint64], rest: npt.NDArray[np.uint8], tables: npt.NDArray[np.uint64]) -> np.uint64:
    # All in uint64: Numba makes a float of an unsigned and a signed 64-bit integer.
    byte = np.uint64(0xFF)
    crc = np.uint64(0xFFFFFFFF)
    for word in words:
        w = word ^ crc
        crc = (
            tables[7, w & byte]
            ^ tables[6, w >> np.uint64(8) & byte]
            ^ tables[5, w >> np.uint64(16) & byte]
            ^ tables[4, w >> np.uint64(24) & byte]
            ^ tables[3, w >> np.uint64(32) & byte]
            ^ tables[2, w >> np.uint64(40) & byte]
            ^ tables[1, w >> np.uint64(48) & byte]
            ^ tables[0, w >> np.uint64(56)]
        )
    for value in rest:
        crc = tables[0, (crc ^ np.uint64(value)) & byte] ^ crc >> np.uint64(8)
    return crc ^ np.uint64(0xFFFFFFFF)


def _cut(where: str, found: int, expected: int) -> DataError:
    return DataError(
        f"the file ends within the record: {found} bytes are left",
        where=where,
        expected=f"{expected} bytes",
        remedy=AGAIN,
    )
