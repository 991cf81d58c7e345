"""The recipe as a JSON Schema: for editors, for the page of settings, and for a check that imports no torch.

build.py             the schema, made from the dataclasses that check a recipe (imports all of them)
recipe.schema.json   what that made, in the repository; `alora schema` prints it
known.py             that file, read
check.py             a recipe held against it, in tenths of a second
lists.py             methods and settings, for the terminal and for docs/recipe_settings.md
"""
