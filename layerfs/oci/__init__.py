"""The image model of OCI image-spec 1.1 and of Docker's schema 2: frozen values, with raw bytes kept."""
