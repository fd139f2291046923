"""The commands of ``python -m unsam_mm``: one module each, with `add_parser` and `run`."""
