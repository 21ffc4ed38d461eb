"""Random access to image layers that are not unpacked: eStargz, zstd:chunked, and tables of seek points."""
