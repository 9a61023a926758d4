"""What networks and steps cost, without data: times, operations, parameters, memory."""
