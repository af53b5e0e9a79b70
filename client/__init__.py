"""What people do with loractl from Python; the command line stands on the same.

`connect` is the beginning, see `service`. Nothing heavy is imported before it is needed.
"""

from .adapter import Adapter
from .datums import Datum, sampled_datum, supervised_datum
from .futures import Future
from .service import Service, connect

__all__ = ["Adapter", "Datum", "Future", "Service", "connect", "sampled_datum", "supervised_datum"]
