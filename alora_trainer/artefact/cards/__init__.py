"""Model cards: the facts as a dataclass, the words as a template (`map_card`, `adapter_card`)."""
