"""A recipe: its sections, how it is read from YAML and checked, and what it will take (`plan`)."""
