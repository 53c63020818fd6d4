"""The report's sections, one module for what belongs together; each turns results into blocks."""
