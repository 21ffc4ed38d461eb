"""The images that are measured: made here, the same bytes every time, and kept in a cache."""
