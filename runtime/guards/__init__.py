"""What may go wrong in a step, and what is done: numbers, memory, and models that get worse."""
