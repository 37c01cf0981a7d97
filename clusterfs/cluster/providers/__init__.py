"""Where views are kept: one module per existing consistent store."""
