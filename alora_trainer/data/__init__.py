"""General text and domain questions: from files or the Hub to token batches and to the files that lm-eval reads."""
