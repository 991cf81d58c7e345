"""Where a new adapter starts: the directions in which the domain is learned and general text moves least."""

from alora_trainer.initialization.initialize import initialize_adapter

__all__ = ["initialize_adapter"]
