"""Object detection: boxes around the objects of each class."""
