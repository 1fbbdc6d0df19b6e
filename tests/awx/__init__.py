"""AWX without AWX: its modules' argument specifications, and a replay of what its tasks do."""
