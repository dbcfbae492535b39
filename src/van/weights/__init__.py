"""Public weights: the registry of published models, the formats of their files, the hub."""
