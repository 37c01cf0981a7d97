"""The only package that imports pyfuse3: kernel request <-> filesystem call."""
