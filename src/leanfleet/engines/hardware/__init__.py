"""What a real device knows of itself: what its owner allows, what a step takes, what its memory has room for."""
