"""Videos to the pixels of planned clips."""
