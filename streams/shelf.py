"""A million small records in little memory: a queue of bytes, of which each can also be read by its name.

A bytes object of its own for each record costs its header, its key and its slot, and leaves holes in the heap
among the messages that come and go. Here records lie in blocks, and all but the youngest blocks are compressed
(zstd): records of one index say much the same. What is read again soon after it came, as an answer is when people
click, is read without unpacking a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import cramjam
import msgspec

BLOCK = 32
"""Records of a block."""
YOUNG_BLOCKS = 64
"""Of the blocks, so many of the youngest are not compressed."""
THAWED_BLOCKS = 16
"""Of the others, so many that were read last are kept as they were read."""
LEVEL = 1
"""Of zstd: records take two fifths less than with LZ4, for half a microsecond more each."""

KEY_BITS = 0xFFF_FFFF_FFFF_FFFF
"""Of a name's hash, what an int of 32 bytes holds. Two of a million names are alike once in two million times."""

Block = list[bytes | None]
"""None: taken away."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Block).decode


class Shelf:
    """Records by name, the oldest first. A record does not change.

    Of a name only its hash is kept: a record that tells its name should be asked for it.

    >>> shelf = Shelf()
    >>> shelf.put("a", b"1"), shelf.put("b", b"2"), shelf.put("a", b"3")
    (True, True, False)
    >>> shelf.get("b"), "c" in shelf, len(shelf)
    (b'2', False, 2)
    >>> shelf.pop_oldest("a"), shelf.oldest()
    (b'1', b'2')
    """

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        """Key → how many records were put before it."""
        self._young: dict[int, Block] = {}
        """By number."""
        self._filling: Block = []
        """The last one of them."""
        self._cold: dict[int, bytes] = {}
        self._thawed: OrderedDict[int, Block] = OrderedDict()
        self._first = 0
        """No place below is taken."""
        self._next = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: str) -> bool:
        return hash(name) & KEY_BITS in self._places

    def __iter__(self) -> Iterator[bytes]:
        """From the oldest on. Nothing may be put or taken away meanwhile."""
        for number in [*self._cold, *self._young]:
            gone = max(0, self._first - number * BLOCK)
            yield from (record for record in self._block(number)[gone:] if record is not None)

    def put(self, name: str, record: bytes) -> bool:
        """Add a record. False, and nothing is added, where the name is there."""
        key, places, place = hash(name) & KEY_BITS, self._places, self._next
        if places.setdefault(key, place) != place:
            return False
        self._next = place + 1
        if place % BLOCK:
            self._filling.append(record)
        else:
            self._begin(place // BLOCK, record)
        return True

    def _begin(self, number: int, record: bytes) -> None:
        self._young[number] = self._filling = [record]
        if len(self._young) > YOUNG_BLOCKS:
            oldest = next(iter(self._young))
            self._freeze(oldest, self._young.pop(oldest))

    def get(self, name: str) -> bytes | None:
        place = self._places.get(hash(name) & KEY_BITS)
        return None if place is None else self._at(place)

    def remove(self, name: str) -> None:
        """Take one away that is there."""
        number, place = divmod(self._places.pop(hash(name) & KEY_BITS), BLOCK)
        block = self._block(number)
        block[place] = None
        if number in self._cold:
            self._freeze(number, block)

    def oldest(self) -> bytes | None:
        while self._first < self._next:
            record = self._at(self._first)
            if record is not None:
                return record
            self._leave_first()
        return None

    def pop_oldest(self, name: str) -> bytes:
        """Take the oldest away, which has this name. Raises KeyError where it has another one."""
        record = self.oldest()
        if record is None or self._places.get(hash(name) & KEY_BITS) != self._first:
            raise KeyError(name)
        del self._places[hash(name) & KEY_BITS]
        self._leave_first()
        return record

    def _leave_first(self) -> None:
        self._first += 1
        number, place = divmod(self._first, BLOCK)
        if not place:
            self._young.pop(number - 1, None)
            self._cold.pop(number - 1, None)
            self._thawed.pop(number - 1, None)

    def _at(self, place: int) -> bytes | None:
        number, index = divmod(place, BLOCK)
        return self._block(number)[index]

    def _block(self, number: int) -> Block:
        young = self._young.get(number)
        if young is not None:
            return young
        if number in self._thawed:
            self._thawed.move_to_end(number)
        else:
            self._thawed[number] = _unpack(cramjam.zstd.decompress(self._cold[number]))
            if len(self._thawed) > THAWED_BLOCKS:
                self._thawed.popitem(last=False)
        return self._thawed[number]

    def _freeze(self, number: int, block: Block) -> None:
        self._cold[number] = bytes(cramjam.zstd.compress(_pack(block), LEVEL))
