"""The kit tests itself: wrong implementations that it must catch, and correct ones that it must not."""
