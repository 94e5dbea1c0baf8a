"""Clip sets, drawn from stored clips."""
