"""Runs a process on a container's tree, in namespaces of its own; nothing is mounted outside of them."""
