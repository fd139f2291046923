"""Objects on disk: measurements, file formats, autosave."""
