"""The fixture that users of the lab get, for its own tests."""

from devices.lab.pytest_plugin import lab_of

__all__ = ["lab_of"]
