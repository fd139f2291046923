"""Objects through the slices of a stack or the frames of a movie; without Qt."""
