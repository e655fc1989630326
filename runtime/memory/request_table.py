"""Where the tokens of each running request lie: a table of pool slots, one row per request."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ..transfer import to_device
from .allocator import MemoryAccountError

IndexArray = npt.NDArray[np.integer]


class ReqToTokenPool:
    """`[max_running_requests + 1, max_context_len]` int32: [row, i] is the slot of token i of the request in `row`.

    `host` (numpy) is the truth and what the scheduler reads; `device` (torch) is what attention reads. On the CPU both
    are the same memory; elsewhere each write is copied over, in stream order, and nothing is ever read back. Entries
    behind what was written are 0, the padding slot. The last row, `padding_row`, is never given out and stays 0: the
    padding requests of a batch of static shape read it.
    """

    def __init__(self, max_running_requests: int, max_context_len: int, device: str | torch.device = "cpu") -> None:
        self.max_running_requests = max_running_requests
        self.max_context_len = max_context_len
        on_cpu = torch.device(device).type == "cpu"
        shape = (max_running_requests + 1, max_context_len)
        self.host: npt.NDArray[np.int32] = np.zeros(shape, dtype=np.int32)
        self.device = torch.from_numpy(self.host) if on_cpu else torch.zeros(shape, dtype=torch.int32, device=device)
        self.padding_row = max_running_requests
        self._mirrored = not on_cpu
        self._give_all_back()

    def _give_all_back(self) -> None:
        num_rows = self.max_running_requests
        self._free_rows = list(range(num_rows - 1, -1, -1))
        self._written = np.zeros(num_rows, dtype=np.int64)  # entries of a row that may be other than 0
        self._is_free = np.ones(num_rows, dtype=np.bool_)

    def start_over(self) -> None:
        """All rows are free, and zero."""
        self.host[:] = 0
        if self._mirrored:
            self.device.zero_()
        self._give_all_back()

    @property
    def num_free_rows(self) -> int:
        return len(self._free_rows)

    def alloc(self) -> int | None:
        """A row of zeros, or None when all rows are taken."""
        if not self._free_rows:
            return None
        row = self._free_rows.pop()
        self._is_free[row] = False
        return row

    def free(self, row: int) -> None:
        """Give a row back and clear it. Raises MemoryAccountError if it is free already."""
        if self._is_free[row]:
            raise MemoryAccountError(f"request row {row} given back twice")
        end = int(self._written[row])
        self.host[row, :end] = 0
        if self._mirrored:
            self.device[row, :end] = 0
        self._written[row] = 0
        self._is_free[row] = True
        self._free_rows.append(row)

    def write(self, row: int, start: int, slots: IndexArray) -> None:
        """Set entries [start, start + len(slots)) of one row."""
        end = start + len(slots)
        self.check_fits(end)
        self.host[row, start:end] = slots
        self._written[row] = max(int(self._written[row]), end)
        if self._mirrored:
            self.device[row, start:end] = to_device(np.array(slots, dtype=np.int32), self.device.device)

    def write_many(self, rows: IndexArray, positions: IndexArray, slots: IndexArray) -> None:
        """Set entry [rows[i], positions[i]] = slots[i] for all i, in one go."""
        if len(rows) == 0:
            return
        self.check_fits(int(positions.max()) + 1)
        self.host[rows, positions] = slots
        np.maximum.at(self._written, rows, positions + 1)
        if self._mirrored:
            where = to_device(np.stack([rows, positions]).astype(np.int64), self.device.device)
            values = to_device(np.array(slots, dtype=np.int32), self.device.device)
            self.device[where[0], where[1]] = values

    def slots(self, row: int, start: int, end: int) -> npt.NDArray[np.int64]:
        """[end - start] the slots of tokens start..end of one row (a copy)."""
        return self.host[row, start:end].astype(np.int64)

    def check_fits(self, num_tokens: int) -> None:
        """Raise MemoryAccountError if a row cannot hold that many tokens."""
        if num_tokens > self.max_context_len:
            raise MemoryAccountError(
                f"a request row would hold {num_tokens} tokens, more than max_context_len {self.max_context_len}"
            )
