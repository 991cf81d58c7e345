"""A recipe worked on in one folder: its stages, what each depends on, and every training and evaluation."""
