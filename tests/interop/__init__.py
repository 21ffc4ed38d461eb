"""Comparisons with the programs that made the formats: docker, podman, skopeo, umoci."""
