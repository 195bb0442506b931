"""What a driver does to frames before XDP sees them: the offloads that take VLAN tags out, and the filters
that drop frames with tags that no VLAN device has (ethtool's ioctl).

Must not know: programs, maps. A tag beside the frame is invisible to an XDP program, which then forwards the
frame with a wrong tag or with none. Both offloads, of 802.1Q and of 802.1ad tags, are turned off and stay
off: whether they were on before is not known after a crash, and to the kernel's own stack a tag within the
frame is the same. No refusal raises: it is told.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

TAKE_TAGS_OUT = ("rx-vlan-hw-parse", "rx-vlan-stag-hw-parse")
"""As `ethtool -k` names them; the first is also called rxvlan."""
DROP_TAGS = ("rx-vlan-filter", "rx-vlan-stag-filter")

_SIOCETHTOOL = 0x8946  # linux/sockios.h
# linux/ethtool.h
_GET_STRINGS, _GET_SET_INFO, _GET_FEATURES, _SET_FEATURES = 0x1B, 0x37, 0x3A, 0x3B
_STRINGS_OF_FEATURES = 4
_STRING = 32
_SET_INFO = struct.Struct("=IIQI")  # command, reserved, mask of sets, the length of the one asked for
_STRINGS = struct.Struct("=III")  # command, set, length
_FEATURES = struct.Struct("=II")  # command, blocks
_BLOCK = struct.Struct("=IIII")  # of 32 features: available, requested, active, never changed
_CHANGE = struct.Struct("=II")  # of 32 features: which ones, to what
_REQUEST = struct.Struct("16sP16x")  # struct ifreq


@dataclass(frozen=True, slots=True)
class Outcome:
    """`turned_off`: offloads that were on; `left_on`: those that are still, and `why`."""

    turned_off: tuple[str, ...] = ()
    left_on: tuple[str, ...] = ()
    why: str = ""


class _Ethtool:
    """Questions about one interface, each an ioctl; OSError where the answer is no. `numbers`: those of the
    offloads asked for that this kernel knows.
    """

    def __init__(
        self, opened: socket.socket, interface: str, offloads: Sequence[str] = TAKE_TAGS_OUT
    ) -> None:
        self._socket = opened
        self._interface = interface.encode()
        names = self._names()
        self._blocks = (len(names) + 31) // 32
        self.numbers = {name: n for n, name in enumerate(names) if name in offloads}

    def _ask(self, question: bytes) -> bytes:
        buffer = array.array("B", question)
        request = _REQUEST.pack(self._interface, buffer.buffer_info()[0])
        fcntl.ioctl(self._socket, _SIOCETHTOOL, request)
        return buffer.tobytes()

    def _names(self) -> list[str]:
        asked = _SET_INFO.pack(_GET_SET_INFO, 0, 1 << _STRINGS_OF_FEATURES, 0)
        count: int = _SET_INFO.unpack(self._ask(asked))[3]
        head = _STRINGS.pack(_GET_STRINGS, _STRINGS_OF_FEATURES, count)
        strings = self._ask(head + bytes(_STRING * count))[_STRINGS.size :]
        cut = (strings[at : at + _STRING] for at in range(0, len(strings), _STRING))
        return [string.partition(b"\0")[0].decode() for string in cut]

    def active(self) -> Iterator[str]:
        """Those that are on."""
        said = self._ask(_FEATURES.pack(_GET_FEATURES, self._blocks) + bytes(_BLOCK.size * self._blocks))
        for name, n in self.numbers.items():
            _, _, active, _ = _BLOCK.unpack_from(said, _FEATURES.size + n // 32 * _BLOCK.size)
            if active >> n % 32 & 1:
                yield name

    def turn_off(self, name: str) -> None:
        """Nothing happens where the driver has it fixed."""
        n = self.numbers[name]
        question = bytearray(_FEATURES.size + _CHANGE.size * self._blocks)
        _FEATURES.pack_into(question, 0, _SET_FEATURES, self._blocks)
        _CHANGE.pack_into(question, _FEATURES.size + n // 32 * _CHANGE.size, 1 << n % 32, 0)
        self._ask(bytes(question))


def keep_tags_in_frames(interface: str) -> Outcome:
    """Turns off what takes tags out of frames that come in."""
    return _without(interface, TAKE_TAGS_OUT)


def take_all_tags(interface: str) -> Outcome:
    """Turns off what drops frames with tags of no VLAN device."""
    return _without(interface, DROP_TAGS)


def _without(interface: str, offloads: Sequence[str]) -> Outcome:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as opened:
        try:
            return _turn_off(_Ethtool(opened, interface, offloads))
        except OSError as error:
            return Outcome(left_on=tuple(offloads), why=f"not known, {os.strerror(error.errno or 0)}")


def _turn_off(ethtool: _Ethtool) -> Outcome:
    """Each by itself, as a driver may have one of them fixed."""
    found, why = tuple(ethtool.active()), "the driver has it fixed"
    for name in found:
        try:
            ethtool.turn_off(name)
        except OSError as error:
            why = os.strerror(error.errno or 0)
    left_on = tuple(ethtool.active())
    turned_off = tuple(name for name in found if name not in left_on)
    return Outcome(turned_off, left_on, why if left_on else "")
