"""Looks for damage in a store, and repairs what can be repaired: blobs, layers, the database, mounts."""
