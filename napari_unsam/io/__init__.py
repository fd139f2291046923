"""Objects on disk: measured, written in the formats that other programs read, and saved while one works."""
