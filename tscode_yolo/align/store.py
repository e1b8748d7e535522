"""Tables that grow up to a limit and no further: what keeps memory bounded while a data set streams by.

Detections keep their highest scores (average precision hardly notices its lowest ones, and COCO itself cuts at 100 an
image); objects keep a uniform sample (Vitter's algorithm R in blocks). Below the limit nothing is lost; above it
``dropped`` says how many rows went, and the report repeats it.
"""

from __future__ import annotations

import numpy as np


class RowTable:
    """Rows of one structured type.

    Args:
        dtype: of a row.
        limit: rows kept at most; the table briefly holds up to a quarter more.
        by: a field, whose highest values are kept; None keeps a uniform sample.
        seed: of the sample.
    """

    def __init__(self, dtype: np.dtype, limit: int, by: str | None = None, seed: int = 0) -> None:
        if limit < 1:
            raise ValueError(f"expected a limit of at least one row, got {limit}")
        self.limit, self.by, self.seen = limit, by, 0
        self._rows = np.empty(min(limit, 1024), dtype)
        self._priority = np.empty(len(self._rows))
        self._n = 0
        self._random = np.random.default_rng(seed)

    @property
    def rows(self) -> np.ndarray:
        """The rows kept so far, in the order they came."""
        if self._n > self.limit:
            self._shrink()
        return self._rows[: self._n]

    @property
    def dropped(self) -> int:
        """How many rows did not fit."""
        return self.seen - len(self.rows)

    def add(self, rows: np.ndarray) -> None:
        """Append rows, dropping the least important once the table is full."""
        self.seen += len(rows)
        ceiling = self.limit + max(self.limit // 4, 1)
        for start in range(0, len(rows), ceiling - self.limit):
            self._append(rows[start : start + ceiling - self.limit], ceiling)

    def _append(self, rows: np.ndarray, ceiling: int) -> None:
        if self._n + len(rows) > ceiling:
            self._shrink()
        need = self._n + len(rows)
        if need > len(self._rows):
            size = min(ceiling, max(need, 2 * len(self._rows)))
            self._rows = np.resize(self._rows, size)
            self._priority = np.resize(self._priority, size)
        self._rows[self._n : need] = rows
        self._priority[self._n : need] = rows[self.by] if self.by else self._random.random(len(rows))
        self._n = need

    def _shrink(self) -> None:
        """Keep the ``limit`` rows of highest priority, in their order."""
        keep = np.sort(np.argpartition(-self._priority[: self._n], self.limit - 1)[: self.limit])
        self._rows[: self.limit], self._priority[: self.limit] = self._rows[keep], self._priority[keep]
        self._n = self.limit
