"""File trees as data: tar streams, change sets, extraction and differences."""
