"""Pictures of what models do, as matplotlib figures made of plain arrays; nothing here knows of a model."""
