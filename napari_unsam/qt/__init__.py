"""The sections of the dock, one widget each."""
