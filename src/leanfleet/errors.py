"""The exceptions of leanfleet, all in one place.

```
LeanfleetError                 anything leanfleet raises on purpose; exit code 1
├── UserError                  the caller's mistake; one line says what and where; exit code 2
│   ├── ExperimentError        an experiment file or an override is wrong
│   ├── DataError              a data set cannot be read or split as asked
│   ├── NetworkError           a network is unknown or cannot be built
│   │   └── TraceError         a network cannot be traced or cut; names the node
│   ├── LutError               a lookup table is damaged or made for another network
│   └── RecordError            a run record is missing, damaged or does not fit
├── WireError                  bytes that are not the message that was expected
├── WorkerError                a worker process died or failed
└── StorageError               the disk refused (full, read-only)
```
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeanfleetError(Exception):
    """Anything leanfleet raises on purpose."""


class UserError(LeanfleetError):
    """The caller's mistake: one line names the file, key or node and says what to do."""


class ExperimentError(UserError):
    """An experiment file or a `--set` override is wrong."""


class DataError(UserError):
    """A data set cannot be read, or cannot be split over devices as asked."""


class NetworkError(UserError):
    """A network is unknown or cannot be built."""


class TraceError(NetworkError):
    """A network cannot be traced, or a node of it cannot be cut."""


class LutError(UserError):
    """A lookup table is damaged, or was made for another network."""


class RecordError(UserError):
    """A run record is missing, damaged, or does not fit what is asked of it."""


class RecordInUseError(RecordError):
    """Another process is writing the run record."""


class WireError(LeanfleetError):
    """Bytes that are not the message that was expected."""


class WorkerError(LeanfleetError):
    """A worker process died or failed."""


class StorageError(LeanfleetError):
    """The disk refused a write."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest known word, or the list of all known ones.

    Args:
        word: What the user wrote.
        known: What could have been written.
    """
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}"
