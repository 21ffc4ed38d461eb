"""The image that the interop tests compare, as a Dockerfile and what it needs."""
