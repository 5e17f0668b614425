"""What a training step takes on this machine at any dropout rates: seconds, and bytes of memory."""

from leanfleet.profiling.memory import check_room, most_bytes, peak_bytes
from leanfleet.profiling.step_time import StepTime
from leanfleet.profiling.workload import Workload

__all__ = ["StepTime", "Workload", "check_room", "most_bytes", "peak_bytes"]
