"""What of this installation works on this machine, what a data set would need of it, and how to get what is missing.

Nothing is imported but where it is looked at: what cannot be imported is a finding.
"""

from reid_fast.doctor.estimate import needs
from reid_fast.doctor.finding import Finding
from reid_fast.doctor.hardware import machine
from reid_fast.doctor.packages import parts
from reid_fast.doctor.testing import self_test

__all__ = ["Finding", "machine", "needs", "parts", "self_test"]
