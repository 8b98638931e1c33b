"""Models and data in and out. Each module needs an extra of its own; nothing here is imported before it is used."""
