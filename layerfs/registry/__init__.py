"""Registries: a client of the OCI distribution-spec 1.1 and of Docker's registry API before it."""
