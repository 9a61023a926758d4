"""Into other forms and compared: checkpoints, exported programs, data sets as records."""
