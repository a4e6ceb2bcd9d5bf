"""Whether a video file was cut short, by the sizes that its container writes down; nothing is decoded.

A demuxer takes the end of a file for the end of the video, and says nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# Top-level boxes of MP4 and QuickTime. What cameras append after them has another name, and ends the walk.
_BOXES = frozenset(b"ftyp styp moov moof mdat mfra sidx free skip wide uuid pnot".split())
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # the two elements that a Matroska file is made of


def missing_bytes(path: Path) -> int:
    """How many bytes a file lacks of what it says that it has; 0: none, or it does not say.

    Read are MP4 and QuickTime (boxes), Matroska and WebM (the segment), AVI (its RIFF lists) and GIF, which
    ends in a mark: of one without it, at least 1 byte is missing. A recording that was made to be streamed,
    or whose program was killed, has no size in it.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        for looks_so, end in _CONTAINERS:
            if looks_so(start):
                return max(0, end(file, size) - size)
    return 0


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    """Where the boxes of MP4 end: 32 bits of size, a name, 64 bits of size if that was 1; 0: to the end."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        header = file.read(16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if name not in _BOXES:
            break
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:
            break
        place += length
    return place


def _end_of_segments(file: BinaryIO, size: int) -> int:
    """Where the elements of EBML end: a name, and a size of 1 to 8 bytes, which may be left open."""
    place = 0
    while place + 5 <= size:
        file.seek(place)
        header = file.read(12)
        if header[:4] not in (_EBML, _SEGMENT) or not header[4]:
            break
        bytes_of_size = 9 - header[4].bit_length()
        if len(header) < 4 + bytes_of_size:
            return size + 1  # it ends within a size
        length = int.from_bytes(header[4 : 4 + bytes_of_size], "big") - (1 << 7 * bytes_of_size)
        if length == (1 << 7 * bytes_of_size) - 1:  # left open
            break
        place += 4 + bytes_of_size + length
    return place


def _end_of_riff(file: BinaryIO, size: int) -> int:
    """Where the RIFF lists of an AVI end, without padding: it is several where it is large."""
    place = end = 0
    while place + 12 <= size:
        file.seek(place)
        header = file.read(12)
        length = int.from_bytes(header[4:8], "little")
        if header[:4] != b"RIFF" or header[8:] not in (b"AVI ", b"AVIX") or length in (0, 2**32 - 1):
            break
        end = place + 8 + length
        place = end + length % 2
    return end


def _end_of_gif(file: BinaryIO, size: int) -> int:
    """Where a GIF ends: after its trailer; behind the end of the file where that is missing."""

    def colours(flags: int) -> int:
        return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0

    file.seek(10)
    flags = file.read(1)
    place = 13 + (colours(flags[0]) if flags else 0)
    while place < size:
        file.seek(place)
        header = file.read(10)
        if header[:1] == b"\x3b":
            return place + 1
        if header[:1] == b"\x21":  # an extension
            place += 2
        elif header[:1] == b"\x2c":  # a picture
            place += 11 + (colours(header[9]) if len(header) == 10 else 0)
        else:
            return 0  # no GIF that is known here
        length = 1
        while length and place < size:
            file.seek(place)
            (length,) = file.read(1)
            place += 1 + length
    return size + 1


def _is_mp4(start: bytes) -> bool:
    return start[4:8] in _BOXES


def _is_matroska(start: bytes) -> bool:
    return start.startswith(_EBML)


def _is_avi(start: bytes) -> bool:
    return start.startswith(b"RIFF") and start[8:] == b"AVI "


def _is_gif(start: bytes) -> bool:
    return start.startswith((b"GIF87a", b"GIF89a"))


_CONTAINERS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], int]], ...] = (
    (_is_mp4, _end_of_boxes),
    (_is_matroska, _end_of_segments),
    (_is_avi, _end_of_riff),
    (_is_gif, _end_of_gif),
)
